"""Each file of configs/benchmarks/ composes with a model and a layout into an evaluation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from herl_megatron.benchmarks.known_benchmarks import BENCHMARKS
from herl_megatron.config.load import load_config
from herl_megatron.config.longest import longest_tokens
from herl_megatron.config.machine import Machine
from herl_megatron.config.validate import validate

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs/benchmarks"
FILES = sorted(FOLDER.glob("*.yaml"))
JUDGED = {"writingbench", "llmeval_med", "healthbench_500"}
LIMITS = {"muldimif": 3000}
"""Tokens of a response; 4,096 of the others."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model of 7B's shape and no weights to speak of."""
    model = tmp_path / "models/Qwen2.5-7B-Instruct"
    model.mkdir(parents=True)
    shutil.copy(ROOT / "configs/shapes/Qwen2.5-7B-Instruct.json", model / "config.json")
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_benchmark_has_a_file_but_the_whole_of_healthbench() -> None:
    assert {path.stem for path in FILES} == set(BENCHMARKS) - {"healthbench"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_composes_to_an_evaluation(path: Path, place: Path) -> None:
    """On a layout of a GPU node, whose runs go on and whose evaluations begin anew; everything that
    is missing is rows and a grader's prompt, where the header says that they are."""
    name = path.stem
    parts = [ROOT / "configs/models/qwen2.5_7b.yaml", ROOT / "configs/scale/8gpu.yaml", path]
    config = load_config(parts, ["cluster.device=cpu", f"rollout.kv_cache_bytes={8 << 30}",
                                 "megatron.precision=fp32"])  # fmt: skip
    assert config.run.name == f"qwen2.5_7b_8gpu_{name}" and not config.run.resume
    (rows,) = config.data.eval_files
    (folder,) = re.findall(r"^# Data: herl data .* --out (\S+)$", path.read_text(), re.M)
    assert rows == f"{folder}/eval.jsonl" == f"data/{name}/eval.jsonl"
    assert (config.eval.temperature, config.eval.top_p) == (0.6, 1.0)
    limit = LIMITS.get(name, 4096)
    assert config.eval.max_response_tokens == limit
    # Of a benchmark alone: neither revisions nor training are longer.
    assert longest_tokens(config) == config.data.max_prompt_tokens + limit
    assert bool(config.judge.base_url and config.judge.grader_prompt) == (name in JUDGED)
    for needed in (rows, config.judge.grader_prompt):
        if needed:
            Path(needed).parent.mkdir(parents=True, exist_ok=True)
            Path(needed).write_text(json.dumps({}) + "\n")
    validate(config, purpose="eval", machine=Machine(shared_memory_bytes=1 << 30))


def test_usability_is_of_three_grades() -> None:
    assert load_config(FOLDER / "llmeval_med.yaml").judge.samples == 3
