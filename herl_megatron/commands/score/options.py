"""The options of `herl score` that say how responses are scored, for other commands that score."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol, cast

from herl_megatron.config.load import override


class ScoringOptions(Protocol):
    """As on the command line."""

    @property
    def workers(self) -> int | None:
        """None: by rows and cores."""
        ...

    @property
    def check_module(self) -> Sequence[str] | None:
        """Modules with checks of one's own."""
        ...

    @property
    def check_timeout(self) -> float:
        """Seconds that a check may take."""
        ...

    @property
    def check_memory(self) -> int:
        """Bytes that a check of one's own may take."""
        ...

    @property
    def answer_after(self) -> str:
        """What follows it alone is scored."""
        ...

    @property
    def judge(self) -> str:
        """URL of an endpoint."""
        ...

    @property
    def judge_model(self) -> str:
        """Name of the model there."""
        ...

    @property
    def grader_prompt(self) -> str:
        """File with a benchmark's own prompt."""
        ...

    @property
    def judge_set(self) -> Sequence[str] | None:
        """KEY=VALUE of the judge section."""
        ...


def scoring_overrides(given: ScoringOptions) -> list[str]:
    """The overrides that `prepare((), ..., command="score")` takes."""
    found = [
        override("scoring.check_timeout_s", given.check_timeout),
        override("scoring.check_memory_bytes", given.check_memory),
        override("scoring.check_modules", given.check_module or []),
        override("scoring.answer_after", given.answer_after),
        override("judge.base_url", given.judge),
        override("judge.model", given.judge_model),
        override("judge.grader_prompt", given.grader_prompt),
        *(f"judge.{setting}" for setting in given.judge_set or []),
    ]
    if given.workers is not None:
        found.append(override("scoring.workers", given.workers))
    return found


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """The same options for a command with argparse."""
    group = parser.add_argument_group("how reference answers are scored, as in `herl score`")
    group.add_argument("--workers", type=int, help="processes; default: by rows and cores")
    group.add_argument("--check-module", action="append", metavar="MODULE",
                       help="Python module with checks of your own")  # fmt: skip
    group.add_argument("--check-timeout", type=float, default=5.0, metavar="SECONDS",
                       help="that one check may take")  # fmt: skip
    group.add_argument("--check-memory", type=int, default=4 << 30, metavar="BYTES",
                       help="that a check of your own may take")  # fmt: skip
    group.add_argument("--answer-after", default="", metavar="TEXT",
                       help="score what follows it alone, such as </think>")  # fmt: skip
    group.add_argument("--judge", default="", metavar="URL", help="OpenAI-compatible endpoint")
    group.add_argument("--judge-model", default="", help="the model's name there")
    group.add_argument("--grader-prompt", default="", metavar="FILE",
                       help="a benchmark's own prompt")  # fmt: skip
    group.add_argument("--judge-set", action="append", metavar="KEY=VALUE",
                       help="any key of the judge section")  # fmt: skip


def scoring_options(given: argparse.Namespace) -> ScoringOptions:
    """What a parser with `add_scoring_arguments` read."""
    return cast(ScoringOptions, given)
