"""Epochs to steps, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from herl_megatron.config.load import load_config
from herl_megatron.data.epochs import count_rows, in_steps, in_steps_where_known


def rows(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps({"id": str(n)}) + "\n\n" for n in range(count)))
    return str(path)


@pytest.mark.parametrize(
    ("purpose", "epochs", "count", "per_step", "steps"),
    [
        ("train", "6", 10394, 64, 975),  # 974.4
        ("train", "3", 17926, 64, 841),  # 840.3
        ("train", "2", 32, 64, 1),  # exactly
        ("train", "0.1", 640, 64, 1),
        ("train", "0.7", 300, 7, 30),  # 210 / 7; as binary numbers a little more
        ("train", "1.001", 1000, 10, 101),  # 100.1
        ("sft", "2", 9, 4, 5),  # 4.5
        ("dpo", "3", 4, 4, 3),
    ],
)
def test_steps_are_epochs_of_the_rows_rounded_up(
    tmp_path: Path, purpose: str, epochs: str, count: int, per_step: int, steps: int
) -> None:
    path = rows(tmp_path / "rows.jsonl", count)
    size = {
        "train": "train.prompts_per_step", "sft": "sft.rows_per_step", "dpo": "dpo.pairs_per_step",
    }[purpose]  # fmt: skip
    file = "data.train" if purpose == "train" else f"{purpose}.data"
    given = [f"{purpose}.epochs={epochs}", f"{size}={per_step}", f"{file}={path}"]
    config = load_config([], ["model.path=m", *given])
    section = getattr(config, purpose)
    assert (section.steps, section.epochs) == (None, float(epochs))
    found = getattr(in_steps(config, purpose), purpose)  # type: ignore[arg-type]
    assert (found.steps, found.epochs, found.step_count) == (steps, None, steps)


def test_rows_of_parquet_count_as_those_of_jsonl(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    assert count_rows(str(tmp_path / "a.parquet")) == 3
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"none\.jsonl: the file has no rows"):
        count_rows(str(tmp_path / "none.jsonl"))


def test_other_commands_and_plain_steps_are_as_they_were(tmp_path: Path) -> None:
    config = load_config([], ["model.path=m", "train.epochs=2", "data.train=nowhere.jsonl"])
    assert in_steps(config, "eval") is config and in_steps(config, "sft") is config
    plain = load_config([], ["model.path=m", "train.steps=7"])
    assert in_steps(plain, "train") is plain and plain.train.step_count == 7
    assert in_steps_where_known(plain, "train") == (plain, "")


def test_without_the_rows_nobody_knows_the_steps(tmp_path: Path) -> None:
    config = load_config([], ["model.path=m", "train.epochs=2", "data.train=nowhere.jsonl"])
    same, said = in_steps_where_known(config, "train")
    assert same is config and same.train.steps is None
    assert "train.epochs is 2 and data.train 'nowhere.jsonl' is not here" in said
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: there is no such file"):
        in_steps(config, "train")
    with pytest.raises(AssertionError, match="epochs become steps"):
        _ = config.train.step_count


def test_more_steps_than_a_run_can_have_are_refused(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", 1001)
    given = ["train.epochs=1000000", "train.prompts_per_step=1", f"data.train={path}"]
    with pytest.raises(ValueError, match="of 1001 rows makes 1001000000 steps; the most are"):
        in_steps(load_config([], ["model.path=m", *given]), "train")
