"""Bad input at the command line: one clear message with value and fix, before Ray starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

from herl_megatron.cli import app
from tests.toy_copies import copy_toy_task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    copy_toy_task(folder, seed=0, train_prompts=16, heldout_prompts=4, sft_rows=4)
    return folder


def refused(toy: Path, tmp_path: Path, *overrides: str) -> str:
    """What `herl train` prints when it refuses; nothing may have been started or written."""
    arguments = [
        "train", str(ROOT / "configs/quickstart_cpu.yaml"), f"model.path={toy}/model",
        f"data.train={toy}/train.jsonl", f"data.eval={toy}/heldout.jsonl",
        f"run.dir={tmp_path}/runs", *overrides,
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert not ray.is_initialized()
    assert not (tmp_path / "runs").exists()
    return result.output


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stesp=3"], ["train.stesp", "train.steps"]),
        (["train.steps=many"], ["train.steps", "many"]),
        (["train.prompts_per_optimizer_step=5"], ["16", "5", "prompts_per_optimizer_step"]),
        (["megatron.tensor_parallel=3"], ["tensor_parallel", "3"]),
        (["megatron.fp8=delayed", "cluster.device=cpu"], ["fp8", "delayed"]),
        (["cluster.device=cuda"], ["cluster.device", "cuda"]),
        (["data.max_prompt_tokens=20"], ["data.max_prompt_tokens=20", "raise the limit"]),
        (["data.train=nowhere.jsonl"], ["data.train", "nowhere.jsonl"]),
        (
            ["hindsight.reference_compat=true", "hindsight.replace=worst"],
            ["hindsight.replace", "reference_compat"],
        ),
    ],
)
def test_bad_configuration(
    toy: Path, tmp_path: Path, overrides: list[str], said: list[str]
) -> None:
    output = refused(toy, tmp_path, *overrides)
    assert [text for text in said if text not in output] == [], output


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(line: str) -> str:
        row = json.loads(line)
        change(row)
        return json.dumps(row)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda line: line[:-5], ["not JSON"]),
        (broken(lambda row: row["rubric"].update(criteria=[])), ["criteria"]),
        (
            broken(
                lambda row: row["rubric"]["criteria"][0].update(check="ifeval/startend:quoting")
            ),
            ["ifeval/startend:quoting", "ifeval/startend:quotation"],
        ),
        (broken(lambda row: row.update(promt="x")), ["promt"]),
        (broken(lambda row: row.pop("messages")), ["messages"]),
    ],
)
def test_bad_prompt_row_names_file_and_line(
    toy: Path, tmp_path: Path, edit: Callable[[str], str], said: list[str]
) -> None:
    lines = (toy / "train.jsonl").read_text().splitlines()
    lines[2] = edit(lines[2])
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines))
    output = refused(toy, tmp_path, f"data.train={bad}")
    assert [text for text in [f"{bad}:3", *said] if text not in output] == [], output


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: (model / "chat_template.jinja").unlink(), "chat template"),
        (lambda model: (model / "model.safetensors").unlink(), "safetensors"),
        (lambda model: (model / "config.json").unlink(), "config.json"),
    ],
)
def test_bad_model_folder(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    copy_toy_task(tmp_path / "toy", seed=0, train_prompts=16, heldout_prompts=4, sft_rows=4)
    spoil(tmp_path / "toy/model")
    assert said in refused(tmp_path / "toy", tmp_path)
