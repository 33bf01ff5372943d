"""How a chain runs: what is done is skipped, what fails ends it, what is missing is said before."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from herl_megatron.commands import reproduce
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.reproduce import needs
from herl_megatron.reproduce.data_sets import EVALUATION, TRAINING
from herl_megatron.reproduce.needs import data_problem, judge_problem, model_problem
from herl_megatron.reproduce.row_record import RECORD, RowRecord, read_record
from herl_megatron.reproduce.run_chain import Children, Started, run_stages
from herl_megatron.reproduce.stage import Stage
from herl_megatron.run.lock import RunLock

ROW = "qwen2.5_7b/if/herl"


class Chain:
    """Three stages, the first of them shared with other rows, and a child that plays them."""

    def __init__(self, folder: Path) -> None:
        self.row, self.shared = folder / ROW, folder / "shared"
        self.stages = [
            self._stage("data_if", ("data", "hir", "--input", "x/y"), self.shared),
            self._stage(
                "train", ("train", "a/configs/x.yaml", "train.steps=3"), self.row, "data_if"
            ),
            self._stage("eval_ifeval", ("eval", "judge.base_url=http://a"), self.row, "train"),
        ]
        self.texts: dict[str, str] = {}
        self.ran: list[str] = []
        self.said: list[str] = []
        self.codes: dict[str, int] = {}

    def _stage(self, name: str, argv: tuple[str, ...], home: Path, *reads: str) -> Stage:
        made = home / f"{name}.made"
        return Stage(name, argv, made, (made,), home, reads=reads)

    def child(self, argv: Sequence[str]) -> int:
        (stage,) = [one for one in self.stages if one.argv == tuple(argv)]
        self.ran.append(stage.name)
        code = self.codes.get(stage.name, 0)
        if not code:
            stage.makes.write_text(self.texts.get(stage.name, ""))
        return max(code, 0)

    def run(self, only: str = "", scale: str = "full", redo: bool = False) -> int:
        self.ran.clear()
        self.said.clear()
        record = RowRecord(ROW, scale, "released")
        again = ("herl", "reproduce", ROW, "judge.model=a b")
        started = Started(self.row, record, again, self.said.append, self.child)
        return run_stages(started, self.stages, only=only, redo=redo)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_stages_run_in_order_once(chain: Chain) -> None:
    assert chain.run() == 0
    assert chain.ran == ["data_if", "train", "eval_ifeval"]
    assert chain.said[1] == "2/3 train: herl train a/configs/x.yaml train.steps=3"
    record = read_record(chain.row)
    assert record is not None and (record.row, record.preset) == (ROW, "released")
    assert list(record.stages) == ["train", "eval_ifeval"]  # what is shared has a record of its own
    assert record.read.keys() == {"train", "eval_ifeval"} and list(record.read["train"]) == [
        "data_if"
    ]
    assert chain.run() == 0 and chain.ran == []


@pytest.mark.parametrize("code", [1, 2, 3, 75, 130, 137])
def test_a_failure_ends_it_with_its_exit_code(chain: Chain, code: int) -> None:
    chain.codes["train"] = code
    assert chain.run() == code
    assert chain.ran == ["data_if", "train"]
    assert f"2/3 train ended with exit code {code}" in chain.said[-2]
    assert chain.said[-1] == "  herl reproduce qwen2.5_7b/if/herl 'judge.model=a b'"
    del chain.codes["train"]
    assert chain.run() == 0 and chain.ran == ["train", "eval_ifeval"]


def test_a_stage_that_ends_well_and_made_nothing_has_failed(chain: Chain) -> None:
    chain.codes["train"] = -1
    assert chain.run() == 1
    assert "without" in chain.said[2] and "train.made" in chain.said[2]


def test_only_one_stage(chain: Chain) -> None:
    assert chain.run("data_if") == 0 and chain.ran == ["data_if"]
    assert chain.run("train") == 0 and chain.ran == ["train"]
    assert chain.run("eval") == 0 and chain.ran == ["eval_ifeval"]
    with pytest.raises(ValueError, match="no such stage; it has data_if, train, eval_ifeval"):
        chain.run("sft")


def test_only_needs_what_it_reads(chain: Chain) -> None:
    with pytest.raises(ValueError, match="train must be done before"):
        chain.run("eval")
    assert chain.ran == []


def test_what_is_missing_is_said_at_once_and_nothing_starts(chain: Chain) -> None:
    chain.stages = [
        replace(stage, problem=lambda text=text: text)  # type: ignore[misc]
        for stage, text in zip(chain.stages, ("", "no model", "no judge"), strict=True)
    ]
    with pytest.raises(ValueError, match=r"started; 2 missing:\n  - no model\n  - no j"):
        chain.run()
    assert chain.ran == []
    with_problems = chain.stages
    chain.stages = [replace(stage, problem=str) for stage in chain.stages]
    assert chain.run() == 0
    chain.stages = with_problems
    chain.stages[0].makes.unlink()
    assert chain.run() == 0 and chain.ran == ["data_if"]  # the others are done and need nothing


def test_two_do_not_run_one_row(chain: Chain) -> None:
    lock = RunLock.take(chain.row)
    with pytest.raises(ValueError, match=r"another `herl reproduce` is at work in .*process"):
        chain.run()
    lock.release()
    lock = RunLock.take(chain.shared)  # another row makes what both need
    with pytest.raises(ValueError, match="another `herl reproduce` is at work"):
        chain.run()
    lock.release()
    assert chain.run() == 0


def test_results_are_not_mixed(chain: Chain) -> None:
    """Another scale, or another value of a key that decides about a stage which is done."""
    assert chain.run() == 0
    with pytest.raises(ValueError, match="scale was 'full' and is 'toy'"):
        chain.run(scale="toy")
    train = chain.stages[1]
    moved = ("train", "/b/configs/x.yaml", "train.steps=3", "run.dir=elsewhere")
    chain.stages[1] = replace(train, argv=moved)  # the same from another folder
    chain.stages[2] = replace(chain.stages[2], argv=("eval", "judge.base_url=http://b"))
    assert chain.run() == 0 and chain.ran == []
    chain.stages[1] = replace(train, argv=(*train.argv[:2], "train.steps=4"))
    with pytest.raises(ValueError, match="with train.steps=3, without train.steps=4"):
        chain.run()
    for stage in chain.stages[1:]:
        stage.makes.unlink()  # not done: for `herl train` to say
    assert chain.run() == 0 and chain.ran == ["train", "eval_ifeval"]


def test_a_record_of_somebody_else_is_said(chain: Chain) -> None:
    chain.row.mkdir(parents=True)
    for text in ('{"row": "x"}', "[]", "{"):
        (chain.row / RECORD).write_text(text)
        with pytest.raises(ValueError, match=RECORD):
            chain.run()
    assert (chain.row / RECORD).read_text() == "{" and chain.ran == []


def test_exit_codes_are_those_of_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert Children().run(["config", "explain", "no.such.key"]) == 2
    assert "no.such.key" in capfd.readouterr().err  # what it says is passed on


def test_who_is_asked_to_stop_starts_nothing_more() -> None:
    children = Children()
    before = signal.getsignal(signal.SIGUSR1)
    with children.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert children.run(["no such command"]) == 75
    assert signal.getsignal(signal.SIGUSR1) == before


def test_models_and_data_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    assert model_problem("here", "a/b")() == ""
    assert "--local-dir models/b; or give --model" in model_problem("models/b", "a/b")()
    assert "the Hub cannot be reached" in model_problem("a/b", "a/b")()

    hub, file = TRAINING["medical"], EVALUATION["healthbench_500"]
    said = data_problem("medical", hub, hub.place)()
    assert "hf download --repo-type dataset ScaleAI/RaR-Medicine --local-dir" in said
    assert "--input medical=downloads/RaR-Medicine" in said
    (tmp_path / "cache/ScaleAI___RaR-Medicine").mkdir(parents=True)
    assert data_problem("medical", hub, hub.place)() == ""
    assert f"-o {file.place} {file.url}" in data_problem("healthbench_500", file, file.place)()
    assert data_problem("healthbench_500", file, "train=rows.jsonl")() == ""
    assert "no such file or folder: x.json" in data_problem("medical", hub, "x.json")()


def test_rule_checks_without_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "missing_data", lambda name: "")
    assert needs.checks_problem() == ""
    monkeypatch.setattr(needs, "missing_data", lambda name: f"no {name}" if "punkt" in name else "")
    assert needs.checks_problem().startswith("rule checks: no tokenizers/punkt_tab/english/. With")


def test_a_judge_that_nobody_named_or_whose_prompt_is_not_here() -> None:
    asks = JudgeConfig(base_url="http://a", model="m", grader_prompt="nowhere.txt")
    said = judge_problem("writingbench", asks, option="--eval ")()
    assert "judge.grader_prompt: no such file: nowhere.txt" in said
    assert "--eval judge.grader_prompt=FILE" in said
    assert judge_problem("rows", JudgeConfig(base_url="http://a", model="m"), option="")() == ""
    said = judge_problem("writingbench", JudgeConfig(), option="--eval ")()
    assert "judge.base_url and judge.model is empty" in said
    assert said.endswith("give --eval judge.base_url=... --eval judge.model=...")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a row"),
        (["qwen2.5_7b/if/hrl"], "did you mean qwen2.5_7b/if/herl"),
        ([ROW, "--input", "imdb=x"], "--input imdb: it is one of healthbench_500"),
        ([ROW, "--input", "ifeval"], "--input: 'ifeval' must read NAME=VALUE"),
        ([ROW, "train.steps"], "KEY=VALUE: 'train.steps' must"),
        ([ROW, "model.path=x"], "model.path=x: the row decides that"),
        ([ROW, "--eval", "run.name=x"], "run.name=x: the row decides that"),
        ([ROW, "--scale", "toy", "--model", "x"], "for --scale full"),
        ([ROW, "--configs", "nowhere"], "--configs"),
        ([ROW, "--scale", "toy", "--print", "run.seed=1"], ""),
    ],
)
def test_what_is_wrong_on_the_command_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(words) == (2 if said else 0)
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
