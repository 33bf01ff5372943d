"""`herl reproduce` itself, with stand-ins for the commands of a row: what it makes again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from herl_megatron.commands import reproduce
from herl_megatron.reproduce.chain import make_chain
from herl_megatron.reproduce.paper_rows import find_row
from herl_megatron.reproduce.run_chain import Children
from herl_megatron.reproduce.stage import ChainOptions, Stage
from tests.unit.reproduce.config_folder import ROOT


def make(stage: Stage, argv: Sequence[str]) -> None:
    """Its files, with a seed's own weights and samples."""
    seed = next((word for word in argv if word.startswith("run.seed=")), "run.seed=0")
    for path in (*stage.finished, *stage.product):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "policy":
            save_file({"w": torch.tensor([float(seed[9:])])}, path / "model.safetensors")
        elif not path.is_dir():
            path.write_text(f"{stage.name} {seed}\n")


class Herl:
    """Runs a row of the toy; `ran` are the names of what it started."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.ran = name, list[str]()
        options = ChainOptions(ROOT / "configs", Path("runs"), scale="toy")
        self.stages = {stage.makes: stage for stage in make_chain(find_row(name), options)}
        monkeypatch.setattr(Children, "run", lambda _, argv: self.child(argv))

    def child(self, argv: Sequence[str]) -> int:
        settings = dict(word.split("=", 1) for word in argv if "=" in word)
        if "run.name" in settings:
            place = Path(settings["run.dir"]) / settings["run.name"]
        else:
            place = Path(argv[argv.index("--out") + 1])
        make(self.stages[place], argv)
        self.ran.append(self.stages[place].name)
        return 0

    def __call__(self, *words: str) -> int:
        self.ran.clear()
        at = ("--scale", "toy", "--dir", "runs", "--configs", str(ROOT / "configs"))
        return reproduce.main([self.name, *at, *words])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_policy_of_another_seed_gets_numbers_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    herl = Herl("qwen2.5_7b/if/rlvr", monkeypatch)
    assert herl() == 0 and herl.ran == ["data_toy", "warm_start", "train", "eval_toy"]
    assert herl() == 0 and herl.ran == []
    row = Path("runs/qwen2.5_7b/if/rlvr")
    (row / "eval_toy/mine.txt").write_text("kept")
    shutil.rmtree(row / "train")
    assert herl("run.seed=1") == 2 and herl.ran == []
    said = capsys.readouterr().err
    assert "eval_toy: made from runs/qwen2.5_7b/if/rlvr/train, which is not there" in said
    assert "--redo" in said
    assert herl("run.seed=1", "--print") == 0
    assert "eval_toy (stale: made from" in capsys.readouterr().out

    assert herl("run.seed=1", "--redo") == 0 and herl.ran == ["train", "eval_toy"]
    assert (row / "eval_toy.before-1/mine.txt").read_text() == "kept"
    assert (row / "eval_toy.before-1/eval.json").is_file()
    assert herl("run.seed=1") == 0 and herl.ran == []


def test_samples_that_are_gone_take_all_that_was_learnt_from_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    herl = Herl("qwen3_4b/if/sft", monkeypatch)
    assert herl() == 0
    assert herl.ran == ["data_toy", "warm_start", "samples", "rows", "train", "eval_toy"]
    samples = Path("runs/shared/samples")
    samples.rename("elsewhere")
    assert herl() == 2 and herl.ran == []
    said = capsys.readouterr().err
    for name in ("rows", "train", "eval_toy"):
        assert f"\n  - {name}: made from" in said
    Path("elsewhere").rename(samples)  # put back
    assert herl() == 0 and herl.ran == []

    with (samples / "rollouts/eval.jsonl").open("a") as file:
        file.write("one more\n")
    assert herl() == 2
    assert herl("--redo") == 0 and herl.ran == ["rows"]  # whose rows came out alike
    assert Path("runs/qwen3_4b/if/sft/sft.jsonl.before-1").is_file()
