"""A toy task small enough for end-to-end runs, and a way to see which processes a run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from herl_megatron.data.toy_files import write_toy_task
from tests.limits import HANG_S
from tests.metric_names import undocumented

ROOT = Path(__file__).parents[2]


@dataclass
class Run:
    """A `herl` command in its own process group, marked so that its processes can be found."""

    process: subprocess.Popen[str]
    marker: str
    folder: Path

    def descendants(self) -> list[psutil.Process]:
        """Live processes that carry this run's marker in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HERL_TEST_MARKER") == self.marker:
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def workers(self, title: str) -> list[psutil.Process]:
        """This run's processes whose title contains `title` (Ray names actors in it)."""
        return [p for p in self.descendants() if title in " ".join(p.cmdline())]

    def wait(self, timeout_s: float = HANG_S) -> tuple[int, str]:
        """Exit code and everything printed."""
        output, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output

    def leftovers(self, within_s: float = 60) -> list[str]:
        """Command lines of processes that are still there after `within_s` seconds."""
        end = time.monotonic() + within_s
        while (left := self.descendants()) and time.monotonic() < end:
            time.sleep(0.2)
        return [" ".join(p.cmdline()) for p in left]


def wait_for_step(run: Run, count: int = 1, timeout_s: float = HANG_S) -> None:
    """Return when the metrics of `count` steps are on disk."""
    path = run.folder / "metrics.jsonl"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and run.process.poll() is None:
        if path.exists() and path.read_text().count("reward/mean") >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"no step {count} in {timeout_s} s: {run.process.communicate(timeout=10)[0]}")


class Start(Protocol):
    """The fixtures `herl` and `forked_herl`."""

    def __call__(self, command: str, config: str, *overrides: str) -> Run: ...


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the toy task: model (random weights), prompts, SFT rows."""
    out = tmp_path_factory.mktemp("toy")
    write_toy_task(out, seed=0, train_prompts=512, heldout_prompts=128, sft_rows=160)
    return out


@pytest.fixture(scope="session")
def small(toy: Path) -> list[str]:
    """Overrides that make a run of seconds: few prompts, short responses, random weights.

    Random weights write random words, so the rubrics ask for word counts that some of them reach:
    rewards differ within a group, and some groups need hindsight.
    """
    for name, first in (("train", 0), ("eval", 100)):
        rows = [_word_count_row(f"{name}-{index}", first + index) for index in range(8)]
        (toy / f"{name}_small.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return [
        f"model.path={toy}/model",
        f"data.train={toy}/train_small.jsonl",
        f"data.eval={toy}/eval_small.jsonl",
        "train.steps=2",
        "train.prompts_per_step=4",
        "train.prompts_per_optimizer_step=2",
        "rollout.group_size=4",
        "rollout.max_response_tokens=16",
        "eval.samples_per_prompt=2",
        "eval.temperature=1.0",
        "megatron.tensor_parallel=1",  # who looks at several ranks asks for them
    ]


def _word_count_row(name: str, index: int) -> dict[str, Any]:
    def words(name: str, relation: str, number: int) -> dict[str, Any]:
        return {
            "id": name,
            "kind": "rule",
            "check": "ifeval/length_constraints:number_words",
            "params": {"relation": relation, "num_words": number},
        }

    criteria = [
        words("a", "at least", 9 + index % 3),
        words("b", "less than", 12),
        words("c", "at least", 10),
    ]
    topic = ("river", "garden", "city", "forest")[index % 4]
    content = f"Write about the {'old ' if index >= 100 else ''}{topic}."  # held out from 100 on
    return {
        "id": name,
        "messages": [{"role": "user", "content": content}],
        "rubric": {"criteria": criteria},
    }


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The beginning of a command that runs a module like `python -m`, see fork_server.py."""
    script = str(Path(__file__).with_name("fork_server.py"))
    # Short, whatever the test's folder is called: a socket's name may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="herl-test-", dir="/tmp") as folder:
        server = subprocess.Popen(
            [sys.executable, script, "serve", f"{folder}/socket"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield [sys.executable, "-S", "-E", script, "run", f"{folder}/socket"]
        server.communicate(timeout=HANG_S)


@contextmanager
def starting(folder: Path, name: str, python: Sequence[str]) -> Iterator[Start]:
    """Start `herl COMMAND CONFIG` with overrides in `folder`; what still runs ends with the block.

    python: the beginning of a command that runs a module. Whatever a run has logged is a metric
    that docs/metrics.md explains.
    """
    started: list[Run] = []

    def start(command: str, config: str, *overrides: str) -> Run:
        marker = f"{name}-{os.getpid()}-{len(started)}"
        arguments = [*python, "herl_megatron.cli", command, str(ROOT / "configs" / config)]
        arguments += [f"run.dir={folder}", "run.name=run", *overrides]
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HERL_TEST_MARKER": marker},
        )
        started.append(Run(process=process, marker=marker, folder=folder / "run"))
        return started[-1]

    yield start
    for run in started:
        for process in run.descendants():
            process.kill()
        run.process.wait(timeout=HANG_S)
    for path in folder.glob("**/metrics.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        logged = {name for line in lines if line.endswith("}") for name in json.loads(line)}
        assert undocumented(logged) == set(), f"not in docs/metrics.md ({path})"


@pytest.fixture
def herl(tmp_path: Path, toy: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start `herl` as a user does."""
    python = [sys.executable, "-m"]
    with starting(tmp_path, request.node.name, python) as start:
        yield start


@pytest.fixture
def forked_herl(
    tmp_path: Path, toy: Path, fork_server: list[str], request: pytest.FixtureRequest
) -> Iterator[Start]:
    """The same where the driver's own process is not what is looked at: it has imported already."""
    with starting(tmp_path, request.node.name, fork_server) as start:
        yield start
