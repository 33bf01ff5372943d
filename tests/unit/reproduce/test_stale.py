"""A stage that was made from something else than is there now is never taken for done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from herl_megatron.reproduce.chain import make_chain
from herl_megatron.reproduce.lineage import fingerprint_of, states
from herl_megatron.reproduce.paper_rows import find_row
from herl_megatron.reproduce.row_record import RowRecord, read_record, write_record
from herl_megatron.reproduce.run_chain import Started, run_stages
from herl_megatron.reproduce.stage import ChainOptions, Stage
from herl_megatron.reproduce.stale import is_aside
from herl_megatron.run.lock import RunLock
from tests.unit.reproduce.config_folder import ROOT

COMMANDS = {
    "data_if": ("data", "hir"), "samples": ("eval", "s"), "rows": ("data", "sft"),
    "train": ("sft", "t"), "eval_a": ("eval", "a"), "eval_b": ("eval", "b"),
}  # fmt: skip
READS = {
    "samples": ("data_if",), "rows": ("data_if", "samples"),
    "train": ("data_if", "rows"), "eval_a": ("train",), "eval_b": ("train",),
}  # fmt: skip
LEARNT = ["rows", "train", "eval_a", "eval_b"]


class Row:
    """A row of SFT whose stages write what they read, and a word of their own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.home, shared = folder / name, folder / "shared"
        self.stages = [
            self._stage(stage, shared if stage in ("data_if", "samples") else self.home)
            for stage in COMMANDS
        ]
        self.words: dict[str, str] = {}
        self.said: list[str] = []

    def _stage(self, name: str, home: Path) -> Stage:
        folder = home / name
        return Stage(
            name, COMMANDS[name], folder, (folder / "out.txt",), home / "at" / name,
            reads=READS.get(name, ()),
        )  # fmt: skip

    def out(self, name: str) -> Path:
        return next(stage.finished[0] for stage in self.stages if stage.name == name)

    def run(self, only: str = "", *, redo: bool = False) -> list[str]:
        """The stages that ran."""
        ran = []

        def child(argv: Sequence[str]) -> int:
            (stage,) = [one for one in self.stages if one.argv == tuple(argv)]
            ran.append(stage.name)
            words = [self.out(name).read_text() for name in stage.reads[-1:]]
            stage.makes.mkdir(parents=True, exist_ok=True)
            word = self.words.get(stage.name, stage.name)
            stage.finished[0].write_text(" ".join([*words, word]))
            return 0

        record = RowRecord("qwen3_4b/if/sft", "full", "released")
        started = Started(self.home, record, ("herl",), self.said.append, child)
        assert run_stages(started, self.stages, only=only, redo=redo) == 0
        return ran

    def remove(self, name: str) -> None:
        self.out(name).unlink()
        for file in self.out(name).parent.iterdir():
            file.unlink()
        self.out(name).parent.rmdir()


@pytest.fixture
def row(tmp_path: Path) -> Row:
    found = Row(tmp_path, "mine")
    assert found.run() == list(COMMANDS)
    return found


def test_numbers_of_a_policy_that_is_gone_are_not_the_new_ones(row: Row) -> None:
    row.remove("train")
    row.words["train"] = "seed=1"
    with pytest.raises(ValueError) as caught:
        row.run()
    said = str(caught.value)
    assert "eval_a: made from" in said and "eval_b: made from" in said and "--redo" in said
    assert "train: " not in said and not row.out("train").exists()

    assert row.run(redo=True) == ["train", "eval_a", "eval_b"]
    assert row.out("eval_a").read_text() == "data_if samples rows seed=1 eval_a"
    kept = row.home / "eval_a.before-1/out.txt"
    assert kept.read_text() == "data_if samples rows train eval_a"  # the old numbers are there
    assert row.run() == []


def test_a_policy_that_comes_out_alike_keeps_its_numbers(row: Row) -> None:
    row.remove("train")
    assert row.run(redo=True) == ["train"]
    assert not list(row.home.glob("*.before-*"))


def test_all_that_follows_from_samples_that_are_gone(row: Row) -> None:
    row.remove("samples")
    row.words["samples"] = "other"
    with pytest.raises(ValueError, match=r"rows: made from .*samples, which is not there any more"):
        row.run()
    assert row.run(redo=True) == ["samples", *LEARNT]
    assert row.out("eval_b").read_text() == "data_if other rows train eval_b"


def test_another_row_made_again_what_both_read(row: Row, tmp_path: Path) -> None:
    other = Row(tmp_path, "other")
    assert other.run() == LEARNT
    other.remove("samples")
    other.words["samples"] = "new"
    assert other.run(redo=True) == ["samples", *LEARNT]
    found = states(row.stages)
    assert found["samples"] == "done" and found["rows"].startswith("stale: made from an earlier")
    assert found["eval_b"] == "stale: made from train, which is stale"
    with pytest.raises(ValueError, match="rows: made from an earlier .*shared/samples"):
        row.run()
    assert row.run(redo=True) == LEARNT


def test_rows_that_are_made_again_alike_are_no_change(row: Row) -> None:
    row.remove("data_if")
    assert row.run() == ["data_if"]
    row.remove("data_if")
    row.words["data_if"] = "others"
    with pytest.raises(ValueError, match="samples: made from an earlier .*data_if"):
        row.run()  # known once they are made
    assert row.out("data_if").read_text() == "others"
    assert row.out("eval_a").read_text().startswith("data_if ")
    assert row.run(redo=True) == ["samples", *LEARNT]


def test_a_stage_that_is_redone_may_be_made_otherwise(row: Row) -> None:
    """Its old words go with its old results; those of a stage that stays count."""
    row.out("samples").write_text("changed")
    row.stages = [
        replace(stage, argv=(*stage.argv, "--min-reward", "0.5")) if stage.name == "rows" else stage
        for stage in row.stages
    ]
    assert row.run(redo=True) == LEARNT
    row.stages = [
        replace(stage, argv=("sft", "t", "sft.steps=9")) if stage.name == "train" else stage
        for stage in row.stages
    ]
    with pytest.raises(ValueError, match="without sft.steps=9"):
        row.run(redo=True)
    said = "there, but not as asked: train was made without sft.steps=9"
    assert states(row.stages)["train"] == said


def test_one_stage_is_judged_with_all_that_it_is_made_from(row: Row) -> None:
    row.out("samples").write_text("changed")
    with pytest.raises(ValueError, match="rows: .*\n.*train: .*\n.*--only away"):
        row.run("eval", redo=True)
    assert row.run("data_if") == []
    row.remove("rows")
    assert row.run("rows") == ["rows"]


def test_what_was_scored_for_rows_is_moved_with_them(row: Row) -> None:
    row.out("samples").write_text("changed")
    scores = row.home / "rows.scores.jsonl"
    scores.write_text("kept")
    (row.home / "rows.before-1").mkdir()  # a name that is taken
    row.run(redo=True)
    assert not scores.exists()
    assert (row.home / "rows.scores.jsonl.before-1").read_text() == "kept"
    assert (row.home / "rows.before-2/out.txt").is_file()
    assert is_aside(row.home / "rows.before-2") and not is_aside(row.home / "rows.before-go")


def test_what_is_being_written_is_not_moved(row: Row) -> None:
    row.out("samples").write_text("changed")
    lock = RunLock.take(row.home / "rows")
    with pytest.raises(ValueError, match="another run is writing"):
        row.run(redo=True)
    lock.release()
    assert row.out("rows").is_file() and row.run(redo=True) == LEARNT


def test_nobody_knows_from_what(row: Row) -> None:
    """Put there by hand, or recorded by an earlier version."""
    stage = row.stages[-1]
    record = read_record(stage.home)
    assert record is not None
    write_record(stage.home, replace(record, read={}))
    with pytest.raises(ValueError, match="eval_b: nothing says from which .*train it was made"):
        row.run()
    assert row.run(redo=True) == ["eval_b"]


def test_a_checkpoint_of_other_rows_is_not_gone_on_with(row: Row) -> None:
    """Training that was stopped."""
    row.remove("eval_a")
    row.remove("eval_b")
    row.out("train").unlink()
    (row.home / "train/checkpoints/step_000003").mkdir(parents=True)
    assert states(row.stages)["train"] == "begun"
    row.out("rows").write_text("others")
    with pytest.raises(ValueError, match="train: made from an earlier .*rows"):
        row.run()
    assert row.run(redo=True) == ["train", "eval_a", "eval_b"]
    assert (row.home / "train.before-1/checkpoints/step_000003").is_dir()


def test_what_a_redone_stage_lacks_is_said_before(row: Row) -> None:
    row.out("train").write_text("changed")
    lacking = [replace(stage, problem=lambda: "no judge") for stage in row.stages[-1:]]
    row.stages = [*row.stages[:-1], *lacking]
    with pytest.raises(ValueError, match=r"1 missing:\n  - no judge"):
        row.run(redo=True)
    assert row.out("eval_a").is_file() and not list(row.home.glob("*.before-*"))


def test_a_model_is_known_by_its_tensors(tmp_path: Path) -> None:
    """A policy's listing says nothing of what is in its files."""
    weights = torch.arange(6.0).reshape(2, 3)
    for name, value in (("a", weights), ("b", weights.clone()), ("c", weights + 1)):
        (tmp_path / name).mkdir()
        save_file({"w": value}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "herl_export.json").write_text("{}")
    a, b, c = (fingerprint_of(tmp_path / name) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("name", "scale", "reads"),
    [
        ("if/rlvr", "full", {"train": "data_if", "eval_ifeval": "train data_ifeval"}),
        ("if/sft", "full", {
            "samples": "data_if", "rows": "data_if samples", "train": "data_if rows",
            "eval_ifeval": "train data_ifeval",
        }),
        ("base", "full", {"eval_ifeval": "data_ifeval", "data_ifeval": ""}),
        ("base", "toy", {"warm_start": "data_toy", "eval_toy": "data_toy warm_start"}),
        ("if/dpo", "toy", {
            "samples": "data_toy warm_start", "pairs": "data_toy warm_start samples",
            "eval_toy": "train data_toy",
        }),
    ],
)  # fmt: skip
def test_what_the_stages_of_a_row_read(name: str, scale: str, reads: dict[str, str]) -> None:
    asked = ChainOptions(ROOT / "configs", Path("r"), scale=scale)  # type: ignore[arg-type]
    found = {stage.name: stage for stage in make_chain(find_row(f"qwen3_4b/{name}"), asked)}
    assert {stage: " ".join(found[stage].reads) for stage in reads} == reads
    for stage in found.values():
        product = {"train": "policy", "warm_start": "policy", "samples": "eval.jsonl"}
        assert stage.product or stage.name in ("data_toy", "rows", "pairs")
        if stage.name in product:
            assert [path.name for path in stage.product] == [product[stage.name]]
