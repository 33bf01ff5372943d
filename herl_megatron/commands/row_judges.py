"""The judges that a row's stages will ask, asked before its first stage: days may lie between."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herl_megatron.blocking import run_blocking
from herl_megatron.commands.row_checks import load_stages
from herl_megatron.commands.score.options import (
    add_scoring_arguments,
    scoring_options,
    scoring_overrides,
)
from herl_megatron.config.load import load_config
from herl_megatron.config.loop_keys import samples
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.reproduce.needs import judge_problem
from herl_megatron.reproduce.stage import ChainOptions, Stage
from herl_megatron.rubrics.client import JudgeClient

PLACEHOLDER = "http://127.0.0.1:8000/v1"
"""What the files of `configs/` have as `judge.base_url`, for somebody to mend."""
_RETRIES = 1
"""Further attempts at a question: a judge that is started later is for a later start of the row."""


@dataclass(frozen=True)
class AskedJudge:
    """A judge that a stage asks. name: what for. option: before KEY=VALUE on the command line."""

    name: str
    option: str
    judge: JudgeConfig

    @property
    def fix(self) -> str:
        """How it is named."""
        return " ".join(f"{self.option}{key}=..." for key in ("judge.base_url", "judge.model"))


def judges_of(stages: Sequence[Stage]) -> Iterator[AskedJudge]:
    """Of the stages that are not done, those of a judge: as their own commands read it."""
    waiting = [stage for stage in stages if not stage.is_done()]
    for one in load_stages(waiting)[0]:
        name, judge = one.stage.name, one.config.judge
        if judge.base_url and samples(one.config, purpose=one.purpose):
            evaluates = name.startswith("eval_")
            shown = name.removeprefix("eval_") if evaluates else "the training rows"
            yield AskedJudge(shown, "--eval " if evaluates else "", judge)
    for stage in waiting:
        if "--judge" in stage.argv:
            yield AskedJudge("the references", "", _of_rows(stage.argv))


def unnamed_judges(stages: Sequence[Stage], asked: ChainOptions) -> list[str]:
    """Judges that nobody named: they are where `configs/` says for somebody to mend it."""
    given = {"": asked.overrides, "--eval ": asked.evaluation}
    problems = []
    unnamed: dict[str, list[str]] = {}
    for one in judges_of(stages):
        if problem := judge_problem(one.name, one.judge, option=one.option)():
            problems.append(problem)
        named = any(text.startswith("judge.base_url=") for text in given[one.option])
        if one.judge.base_url == PLACEHOLDER and not named:
            unnamed.setdefault(one.fix, []).append(one.name)
    for fix, names in unnamed.items():
        problems.append(
            f"judge of {', '.join(dict.fromkeys(names))}: none is named, so that at {PLACEHOLDER}"
            f" will be asked, before the first stage; give {fix}"
        )
    return list(dict.fromkeys(problems))


def silent_judges(stages: Sequence[Stage]) -> list[str]:
    """Judges that do not answer one small question, each asked once, all at the same time; and
    those whose files are not here, which are not asked."""
    found: dict[str, list[AskedJudge]] = {}
    problems = []
    for one in judges_of(stages):
        if problem := judge_problem(one.name, one.judge, option=one.option)():
            problems.append(problem)
        else:
            found.setdefault(one.judge.model_dump_json(), []).append(one)
    groups = list(found.values())
    answers = run_blocking(lambda: _ask([group[0].judge for group in groups])) if groups else []
    for group, said in zip(groups, answers, strict=True):
        if said:
            names = ", ".join(dict.fromkeys(one.name for one in group))
            fixes = " ".join(dict.fromkeys(one.fix for one in group))
            problems.append(f"judge of {names}: {said}; start it, or give {fixes}")
    return list(dict.fromkeys(problems))


async def _ask(judges: Sequence[JudgeConfig]) -> list[str]:
    return list(await asyncio.gather(*(_silence_of(judge) for judge in judges)))


async def _silence_of(judge: JudgeConfig) -> str:
    """Why a judge cannot be used, or the empty string. Nothing of it is kept."""
    changes = {"cache": "", "retries": min(judge.retries, _RETRIES)}
    try:
        client = JudgeClient(judge.model_copy(update=changes))
    except ValueError as error:
        return str(error)
    try:
        await client.preflight()
    except ValueError as error:
        return str(error)
    finally:
        await client.close()
    return ""


def _of_rows(argv: Sequence[str]) -> JudgeConfig:
    """The judge in a command of `herl data`, by the options that it shares with `herl score`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_scoring_arguments(parser)
    given, _ = parser.parse_known_args(list(argv))
    return load_config((), scoring_overrides(scoring_options(given))).judge
