"""What a chain needs from outside, and the command that fetches what is not here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from herl_megatron.config.hub import cached_model, hub_answers, is_hub_name
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.files.os_errors import absent
from herl_megatron.reproduce.data_sets import Origin, is_cached_data_set
from herl_megatron.reproduce.stage import Stage
from herl_megatron.rubrics.checks.nltk_tools import PUNKT, STOPWORDS, TAGGER, missing_data


def missing_inputs(stages: Sequence[Stage]) -> list[str]:
    """What keeps stages that are not done from running, each thing once; those that an earlier
    stage of the chain makes are there by then."""
    found = [stage.problem() for stage in stages if not stage.is_done()]
    return [problem for problem in dict.fromkeys(found) if problem]


def all_of(*checks: Callable[[], str]) -> Callable[[], str]:
    """The first of several problems."""

    def check() -> str:
        return next((problem for one in checks if (problem := one())), "")

    return check


def model_problem(path: str, name: str) -> Callable[[], str]:
    """Whether a model can be had. path: as the configuration gives it. name: on the Hub."""
    return partial(_model_problem, path, name)


def _model_problem(path: str, name: str) -> str:
    if not absent(path, "folder"):
        return ""
    by_hand = f"Where there is network: hf download {name} --local-dir models/{Path(name).name}"
    if not is_hub_name(path):
        return (
            f"model: no such folder: {path} (from {Path.cwd()}). {by_hand}; or give --model with"
            f" its folder, or --model {name} to have it fetched"
        )
    if cached_model(path) is not None or hub_answers():
        return ""
    return (
        f"model: {path} is not whole in the cache of Hugging Face, and the Hub cannot be reached."
        f" {by_hand}; then give --model with that folder"
    )


def data_problem(name: str, origin: Origin, place: str) -> Callable[[], str]:
    """Whether the rows of a data set can be had. name: of --input. place: where they are to be."""
    return partial(_data_problem, name, origin, place)


def _data_problem(name: str, origin: Origin, place: str) -> str:
    path = place.partition("=")[2] or place
    if not absent(path, "file") or not absent(path, "folder"):
        return ""
    then = f"; or give --input {name}=PLACE with the file or folder"
    if place != origin.place or origin.url:
        return (
            f"{name}: no such file or folder: {path} (from {Path.cwd()}). Where there is network:"
            f" {origin.fetch}{then}"
        )
    if is_cached_data_set(place) or hub_answers():
        return ""
    return (
        f"{name}: {place} is a data set of the Hugging Face Hub, which cannot be reached. Where"
        f" there is network: {origin.fetch}; then give --input {name}={origin.fetched}"
    )


def checks_problem() -> str:
    """What rule checks lack on this machine: criteria would be left out."""
    lacking = [problem for name in (PUNKT, TAGGER, STOPWORDS) if (problem := missing_data(name))]
    if not lacking:
        return ""
    return f"rule checks: {'; '.join(lacking)}. Without it criteria are left out of the numbers"


def judge_problem(name: str, judge: JudgeConfig, *, option: str) -> Callable[[], str]:
    """Whether a judge is named for what only a judge can score, and its prompts are there. option:
    before KEY=VALUE."""
    return partial(_judge_problem, name, judge, option)


def _judge_problem(name: str, judge: JudgeConfig, option: str) -> str:
    if lacks := " and ".join(_unset(judge)):
        asked = " ".join(f"{option}{key}=..." for key in ("judge.base_url", "judge.model"))
        return f"{name}: a judge scores it, and {lacks} is empty; give {asked}"
    for key, path in (("prompt", judge.prompt), ("grader_prompt", judge.grader_prompt)):
        if path and (problem := absent(path, "file")):
            return (
                f"{name}: judge.{key}: {problem}: {path} (from {Path.cwd()}); docs/scoring.md says"
                f" how to write it, or give {option}judge.{key}=FILE"
            )
    return ""


def _unset(judge: JudgeConfig) -> Iterator[str]:
    if not judge.base_url:
        yield "judge.base_url"
    if not judge.model:
        yield "judge.model"
