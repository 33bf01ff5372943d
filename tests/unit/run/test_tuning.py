"""Runs that fit rows: what they read, and which checkpoint they may go on from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.loop_keys import loop_keys, samples
from herl_megatron.config.schema import Config
from herl_megatron.data.prompt_source import SftRow, check_unseen, load_prompts, load_sft_rows
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.run.checkpoints import (
    Checkpoint,
    DriverState,
    find_checkpoint,
    publish_checkpoint,
    start_checkpoint,
)
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.tuning_inputs import TuningInputs, load_tuning_inputs, open_tokenizer

EVALUATES = {"sft": {"eval_every": 2}, "data": {"eval": "held_out.jsonl"}}
READ = {"sft.data": "2 rows ab", "tokenizer of model.path": "ef", "data.eval": "1 rows cd",
        "judge.prompt": "34", "source of scoring.check_modules mine": "12"}  # fmt: skip


def config(folder: Path, **sections: dict[str, Any]) -> Config:
    run = {"dir": str(folder), "name": "run", "resume": True}
    return Config.model_validate({"run": run, "model": {"path": "toy"}, **sections})


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., None]:
    """Make `run` a run of SFT with a checkpoint of step 4."""

    def made(*, before: bool = True, **sections: Any) -> None:
        run = {"dir": str(tmp_path), "name": "run"}
        fresh = config(tmp_path, **sections | {"run": run})
        with RunFolder.create(fresh, purpose="sft") as folder:
            staging = start_checkpoint(folder.path, 4)
            headline = {"reward": 0.25, "all_satisfied": 0.0} if before else None
            driver = DriverState(4, 0, {}, headline, fresh.model_dump(mode="json"), READ)
            publish_checkpoint(staging, driver, keep=2, written={})

    return made


def found(folder: Path, prints: dict[str, str] | None = None, **sections: Any) -> Checkpoint:
    """As the command finds it."""
    checkpoint = find_checkpoint(config(folder, **sections), prints or READ, purpose="sft")
    assert checkpoint is not None
    return checkpoint


def test_what_decides_what_is_fitted_must_be_as_it_was(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save()
    assert found(tmp_path, sft={"steps": 200}).driver.step == 4  # lr is constant: it may go on
    for sections, said in (
        ({"sft": {"rows_per_step": 8}}, "sft.rows_per_step is 8 but .* was made with 32"),
        ({"sft": {"steps": 3}}, "sft.steps is 3 but .* has done 4; raise it"),
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr is 0.5"),
        ({"data": {"shuffle": False}}, "data.shuffle is False"),
    ):
        with pytest.raises(ValueError, match=said):
            found(tmp_path, **sections)
    for name in ("sft.data", "tokenizer of model.path"):
        with pytest.raises(ValueError, match=f"{name} is not what .* was made with"):
            found(tmp_path, READ | {name: "other"})
    assert found(tmp_path, train={"steps": 1}, dpo={"beta": 9.0}).driver.step == 4
    assert found(tmp_path, megatron={"tensor_parallel": 2}).driver.step == 4


def test_a_run_under_a_decaying_rate_keeps_its_length(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    decays = {"optimizer": {"schedule": "cosine"}}
    save(**decays)
    with pytest.raises(ValueError, match="sft.steps is 200 but .* with 100"):
        found(tmp_path, sft={"steps": 200}, **decays)


@pytest.mark.parametrize(
    ("sections", "changed", "names"),
    [
        ({}, {}, ()),
        ({"rollout": {"max_response_tokens": 7}}, {}, ("rollout.max_response_tokens",)),
        ({"judge": {"model": "another"}}, {}, ("judge.model",)),
        ({"eval": {"temperature": 0.5}}, {}, ("eval.temperature",)),
        ({"rollout": {"temperature": 0.5, "replicas": 2}}, {}, ()),  # of training rollouts; speed
        ({}, {"data.eval": "other"}, ("data.eval",)),
        ({}, {"judge.prompt": "other"}, ("judge.prompt",)),
        ({}, {"source of scoring.check_modules mine": "x"},
         ("source of scoring.check_modules mine",)),
    ],
)  # fmt: skip
def test_what_is_asked_by_evaluations_alone_may_change_and_then_does_not_compare(
    tmp_path: Path,
    save: Callable[..., None],
    sections: dict[str, Any],
    changed: dict[str, str],
    names: tuple[str, ...],
) -> None:
    save(**EVALUATES)
    same = found(tmp_path, READ | changed, **EVALUATES | sections)
    assert same.other_evaluation == names and same.driver.before is not None
    # Where nothing is evaluated nothing is compared, so nothing from before is kept for later.
    silent = found(tmp_path, READ | changed, **sections)
    assert silent.other_evaluation == () and silent.driver.before is None


def test_evaluating_from_a_resume_on_is_no_version_that_kept_no_fingerprints(
    tmp_path: Path, save: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("herl_megatron")
    logger.addHandler(caplog.handler)  # it does not propagate once `setup_logging` has run
    save(before=False)
    begun = found(tmp_path, READ | {"source of rollout.function f": "1"}, **EVALUATES)
    assert begun.other_evaluation == ("sft.eval_every",)
    assert "kept no fingerprint" not in caplog.text
    found(tmp_path, READ | {"chat template of model.path": "1"}, **EVALUATES)
    logger.removeHandler(caplog.handler)
    assert "kept no fingerprint of chat template of model.path" in caplog.text


def test_how_to_go_on_is_said_by_the_runs_own_command(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save()
    with pytest.raises(KeyboardInterrupt), RunFolder.create(
        config(tmp_path), purpose="sft", fingerprints=READ
    ) as folder:  # fmt: skip
        assert folder.checkpoint is not None
        raise KeyboardInterrupt
    assert "resume it with: herl sft " in (folder.path / "run.log").read_text()
    with pytest.raises(ValueError, match="is a run of `herl sft`, which `herl dpo` cannot go on"):
        RunFolder.create(config(tmp_path), purpose="dpo")


def test_who_samples() -> None:
    asks = Config.model_validate(EVALUATES)
    assert samples(asks, purpose="sft") and not samples(asks, purpose="dpo")
    assert loop_keys(asks, purpose="sft").evaluates
    silent = Config.model_validate({"data": {"eval": "held_out.jsonl"}})
    assert not loop_keys(silent, purpose="sft").evaluates  # as before there was `sft.eval_every`
    assert loop_keys(silent, purpose="train").evaluates
    train = {"prompts_per_step": 64, "prompts_per_optimizer_step": 16, "steps": 3}
    assert loop_keys(Config.model_validate({"train": train}), purpose="train").optimizer_steps == 12


@pytest.mark.parametrize(("every", "due"), [(0, []), (2, [2, 4]), (3, [3]), (6, []), (9, [])])
def test_when_an_evaluation_is_due_between_two_steps(every: int, due: list[int]) -> None:
    sections = {"sft": {"steps": 6, "eval_every": every}}
    loop = loop_keys(Config.model_validate(sections), purpose="sft")
    assert [step for step in range(7) if loop.evaluates_after(step)] == due


def read(folder: Path, rows: list[SftRow], **sections: Any) -> TuningInputs:
    options = Config.model_validate(
        {"model": {"path": f"{folder}/model"}, "data": {"eval": f"{folder}/heldout.jsonl"}}
        | sections
    )
    return load_tuning_inputs(
        options,
        open_tokenizer(options),
        loop=loop_keys(options, purpose="sft"),
        rows=[[asdict(message) for message in row.messages] for row in rows],
        seen={row.messages[:-1]: row.where for row in rows},
    )


def test_what_is_read_and_that_nothing_held_out_is_fitted(tmp_path: Path) -> None:
    write_toy_task(tmp_path, seed=0, train_prompts=2, heldout_prompts=3, sft_rows=4)
    rows = load_sft_rows(f"{tmp_path}/sft.jsonl")
    alone = read(tmp_path, rows)
    assert alone.evaluation is None and alone.fingerprints.keys() == {
        "tokenizer of model.path", "chat template of model.path", "config.json of model.path",
        "sft.data",
    }  # fmt: skip
    assert alone.fingerprints["sft.data"].startswith("4 rows ")
    both = read(tmp_path, rows, sft={"eval_every": 1})
    assert both.evaluation is not None and len(both.evaluation.eval) == 3
    assert both.fingerprints.items() > alone.fingerprints.items()
    assert "weights of the model" not in both.fingerprints  # a checkpoint has them
    other = read(tmp_path, [*rows[:3], replace(rows[3], messages=rows[0].messages)])
    assert other.fingerprints["sft.data"] != alone.fingerprints["sft.data"]
    moved = read(tmp_path, [replace(row, where="elsewhere:1") for row in rows])
    assert moved.fingerprints == alone.fingerprints
    held_out = json.loads((tmp_path / "heldout.jsonl").read_text().splitlines()[1])
    messages = tuple(load_prompts(f"{tmp_path}/heldout.jsonl"))[1].messages
    leak = replace(rows[0], messages=(*messages, rows[0].messages[-1]))
    with pytest.raises(ValueError, match=rf"1 of 3 rows .* also in sft.data: '{held_out['id']}'"):
        read(tmp_path, [leak], sft={"eval_every": 1})
    assert read(tmp_path, [leak]).evaluation is None
    check_unseen({}, load_prompts(f"{tmp_path}/heldout.jsonl"), key="sft.data")
