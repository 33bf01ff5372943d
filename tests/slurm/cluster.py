"""A Slurm of two nodes on this machine: its own munged, slurmctld and two slurmd, ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.limits import HANG_S

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_JOBS = 12  # of one cluster at most; Slurm counts to 67 million, pids reach 4 million
_CONF = """\
ClusterName=herl
FirstJobId={first_job}
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=20
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=1,sched_min_interval=200000,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname=localhost Port={ports[2]} CPUs=3 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why Slurm cannot be run here; empty where it can."""
    missing = [name for name in PROGRAMS if _find(name) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


class Slurm:
    """The running cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}

    def call(self, *command: str | Path, cwd: Path | None = None, **env: str) -> str:
        """Output of a Slurm command."""
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=self.env | env, text=True, timeout=HANG_S,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        said = self.call("scontrol", "show", "job", job, "-o")
        return dict(item.split("=", 1) for item in said.split() if "=" in item)

    def wait(self, job: str, states: Sequence[str]) -> dict[str, str]:
        """Until the job is in one of `states`."""
        end = time.monotonic() + HANG_S
        while (said := self.state(job))["JobState"] not in states:
            assert time.monotonic() < end, f"job {job} is {said['JobState']}, not {states}"
            time.sleep(0.2)
        return said


@contextmanager
def two_node_slurm() -> Iterator[Slurm]:
    """Start the daemons; end them, and the jobs that are left."""
    root = Path(tempfile.mkdtemp(prefix="herl-slurm-", dir="/tmp"))
    (root / "state").mkdir()
    ports = _free_ports(3)
    # Jobs name folders and ports by their number, which no other cluster here may have too: test
    # processes that start together have neighbouring pids, and each has several jobs.
    first_job = os.getpid() * _JOBS
    (root / "slurm.conf").write_text(_CONF.format(root=root, ports=ports, first_job=first_job))
    slurm = Slurm(root)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        key = root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        _start(stack, slurm, "munged", "--foreground", "--force", f"--key-file={key}",
               f"--socket={root}/munge.socket", f"--pid-file={root}/munged.pid",
               f"--log-file={root}/munged.log", f"--seed-file={root}/munged.seed")  # fmt: skip
        _until((root / "munge.socket").exists, "munged")
        _start(stack, slurm, "slurmctld", "-D")
        for node in ("n1", "n2"):
            _start(stack, slurm, "slurmd", "-D", "-N", node)
        _until(lambda: _idle(slurm) == 2, "two idle nodes")
        stack.callback(_end_jobs, slurm)
        yield slurm


def _start(stack: ExitStack, slurm: Slurm, name: str, *options: str) -> None:
    program = _find(name)
    assert program is not None
    with (slurm.root / f"{name}{options[-1]}.out".replace("/", "_")).open("w") as out:
        process = subprocess.Popen(
            [program, *options], env=slurm.env, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=HANG_S)


def _end_jobs(slurm: Slurm) -> None:
    slurm.call("scancel", "--user=root")
    _until(lambda: not slurm.call("squeue", "-h").strip(), "the jobs' end")


def _idle(slurm: Slurm) -> int:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"], env=slurm.env, text=True, capture_output=True
    )
    return done.stdout.split().count("idle")


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < end, f"waited {HANG_S} s for {what}"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens on."""
    for first in range(17000 + os.getpid() % 1000 * 10, 30000, count):
        ports = list(range(first, first + count))
        with ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return ports
    raise AssertionError("no free ports")


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
