"""From a row to its commands, in order: data, what is learnt from, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from herl_megatron.config.purpose import Purpose
from herl_megatron.reproduce.needs import all_of, judge_problem
from herl_megatron.reproduce.paper_rows import PaperRow
from herl_megatron.reproduce.row_parts import Evaluation, RowParts, parts_of, shared_home
from herl_megatron.reproduce.stage import ChainOptions, Stage, run_stage, setting

COMMANDS: dict[str, Purpose] = {"sft": "sft", "dpo": "dpo"}
"""Method -> the command that trains it; others are `train`."""
LEAST_REWARD = 1.0
"""Of an own sample that SFT learns from: the whole rubric is met."""
LEAST_REFERENCE_REWARD = 0.5
"""Of a reference answer that SFT learns from, by the judge."""
MARGIN = 0.1
"""Between the rewards of a pair of DPO."""
_ALL_STAGES = ("judge.", "scoring.", "cluster.")
"""Sections whose overrides are the samples' too."""


def row_folder(row: PaperRow, asked: ChainOptions) -> Path:
    """Where the runs of a row are."""
    return asked.folder / row.name


def make_chain(row: PaperRow, asked: ChainOptions) -> list[Stage]:
    """The stages of a row, in order. Nothing is looked at but the files of `configs/`.

    Raises:
        ConfigError: one of them is missing or does not load.
    """
    parts = parts_of(row, asked)
    stages = list(parts.before)
    model, source = parts.model, list(parts.before)
    if row.method != "base":
        made = _learnt_from(row, parts, asked)
        for stage in made:
            stages.append(stage.reading(stages))
        train = _train(row, parts, asked, made)
        stages.append(train.reading([*parts.before, *made[-1:]]))
        source = stages[-1:]
        model = (setting("model.path", row_folder(row, asked) / "train" / "policy"),)
    for one in parts.evaluations:
        if one.data.name not in {stage.name for stage in stages}:
            stages.append(one.data)
    for one in parts.evaluations:
        stages.append(_evaluate(row, one, model, parts, asked).reading([*source, one.data]))
    return stages


def _learnt_from(row: PaperRow, parts: RowParts, asked: ChainOptions) -> list[Stage]:
    """Of SFT and DPO: the model's own samples, where they are needed, and the rows made of them.

    Nothing that can be read says how the paper made these: references where the set has them, own
    samples where it has none (docs/reproduce.md).
    """
    if row.method not in COMMANDS:
        return []
    samples, home = _samples(row, parts, asked), row_folder(row, asked)
    if row.method == "dpo":
        return [samples, _pairs(samples.makes, parts, asked, home=home)]
    if parts.references:
        return [_reference_rows(parts, asked, home=home)]
    return [samples, _best_rows(samples.makes, home=home)]


def _best_rows(samples: Path, *, home: Path) -> Stage:
    made = home / "sft.jsonl"
    chosen = ("--best-of", str(samples), "--min-reward", str(LEAST_REWARD))
    return Stage("rows", ("data", "sft", *chosen, "--out", str(made)), made, (made,), home)


def _reference_rows(parts: RowParts, asked: ChainOptions, *, home: Path) -> Stage:
    made = home / "sft.jsonl"
    chosen = ("--references", str(parts.rows), "--min-reward", str(LEAST_REFERENCE_REWARD))
    judge, problem = _judge(parts, asked)
    argv = ("data", "sft", *chosen, *judge, "--out", str(made))
    return Stage("rows", argv, made, (made,), home, problem)


def _pairs(samples: Path, parts: RowParts, asked: ChainOptions, *, home: Path) -> Stage:
    """The reference against an own answer, or the best of these against the worst."""
    made = home / "pairs.jsonl"
    last = ("--margin", str(MARGIN), "--out", str(made))
    if not parts.references:
        own = ("pairs", str(samples / "rollouts/eval.jsonl"), *last)
        return Stage("pairs", own, made, (made,), home)
    judge, problem = _judge(parts, asked)
    argv = ("data", "pairs", str(samples), "--references", str(parts.rows), *judge, *last)
    return Stage("pairs", argv, made, (made,), home, problem)


def _judge(parts: RowParts, asked: ChainOptions) -> tuple[tuple[str, ...], Callable[[], str]]:
    """The judge of the training rows as `herl data` takes it, and whether there is one."""
    assert parts.config is not None, "rows with references are of a task with a judge"
    judge = parts.config.judge
    named = ("--judge", judge.base_url, "--judge-model", judge.model)
    given = [text for text in asked.overrides if text.startswith("judge.")]
    own = ("judge.base_url=", "judge.model=")
    others = [text.removeprefix("judge.") for text in given if not text.startswith(own)]
    settings = [word for text in others for word in ("--judge-set", text)]
    return (*named, *settings), judge_problem("the references", judge, option="")


def _samples(row: PaperRow, parts: RowParts, asked: ChainOptions) -> Stage:
    """The model's answers to the training prompts; rows of one model and task share them."""
    overrides = [text for text in asked.overrides if text.startswith(_ALL_STAGES)]
    of = f"samples_{row.model}_{row.task}" if asked.scale == "full" else "samples"
    return run_stage(
        "samples",
        "eval",
        parts.samples,
        (*parts.model, setting("data.eval", parts.rows), *overrides),
        folder=asked.folder,
        run=f"shared/{of}",
        home=shared_home(asked, of),
        problem=parts.model_problem,
    )


def _train(row: PaperRow, parts: RowParts, asked: ChainOptions, made: list[Stage]) -> Stage:
    method = asked.configs / "methods" / f"{row.method}.yaml"
    command = COMMANDS.get(row.method, "train")
    learnt = (setting(f"{command}.data", made[-1].makes),) if made else ()
    return run_stage(
        "train",
        command,
        (*parts.train, method, *parts.last),
        (*parts.model, *parts.train_settings, *learnt, *asked.overrides),
        folder=asked.folder,
        run=f"{row.name}/train",
        home=row_folder(row, asked),
        problem=parts.model_problem,
    )


def _evaluate(
    row: PaperRow,
    one: Evaluation,
    model: tuple[str, ...],
    parts: RowParts,
    asked: ChainOptions,
) -> Stage:
    # Where only rules score, a judge's name without its address would be refused.
    given = [text for text in asked.evaluation if one.judged or not text.startswith("judge.")]
    return run_stage(
        f"eval_{one.name}",
        "eval",
        one.files,
        (*model, *one.settings, *given),
        folder=asked.folder,
        run=f"{row.name}/eval_{one.name}",
        home=row_folder(row, asked),
        problem=all_of(one.problem, *((parts.model_problem,) if row.method == "base" else ())),
    )
