"""Loose verdicts after an evaluation: of whom they are asked, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from herl_megatron.commands import evaluate
from herl_megatron.commands.loose import loose_verdicts
from herl_megatron.types import Prompt, Score, ScoredGroup, Unscored
from tests.unit.benchmarks.answers import UNSCORED, prompt, rules, score, verdicts
from tests.unit.hindsight.groups import make_group

TWO = prompt("two", rules("x", "y"), source="ifeval")


class Variants:
    """Says of each text which criteria its best variant follows: the text itself."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def score_loosely(self, of: Prompt, texts: Sequence[str]) -> list[Score]:
        self.asked += texts
        return [Unscored("the worker died") if text == "died" else score(of, text)
                for text in texts]  # fmt: skip


def test_only_what_misses_something_is_judged_again() -> None:
    scorer = Variants()
    strict = [score(TWO, "++"), score(TWO, "+-"), UNSCORED, score(TWO, "--")]
    texts = ["as it is", "++", "never", "died"]
    found = asyncio.run(loose_verdicts(scorer, TWO, texts, strict))
    assert scorer.asked == ["++", "died"]
    assert found == (verdicts("++"), verdicts("++"), (), ())
    other = replace(TWO, source="mine")
    assert asyncio.run(loose_verdicts(scorer, other, texts, strict)) == ()
    assert len(scorer.asked) == 2


def evaluated() -> list[ScoredGroup]:
    """Two prompts; of the responses `t0` and `t1` each follows one of two instructions."""
    groups = []
    for name in ("ifeval", "mine"):
        of = replace(TWO, id=name, source=name)
        made = make_group([0.5, 0.5], prompt=of)
        rollouts = tuple(
            replace(r, text=text) for r, text in zip(made.group.rollouts, ("++", "-+"), strict=True)
        )
        scores = (score(of, "+-"), score(of, "-+"))
        groups.append(ScoredGroup(replace(made.group, rollouts=rollouts), scores))
    return groups


def test_training_has_headlines_and_herl_eval_the_loose_ones_too() -> None:
    groups, parts = evaluated(), SimpleNamespace(scorer=Variants())
    result = evaluate.summarize(groups)
    assert result.metrics()["eval/benchmark/ifeval"] == 0.0
    strict = {"prompt_strict": 0.0, "instruction_strict": 0.5}
    assert result.benchmarks["ifeval"].metrics == strict
    with_loose: Any = asyncio.run(evaluate._with_loose(result, groups, parts))  # type: ignore[arg-type]
    assert with_loose.benchmarks["ifeval"].metrics == strict | {
        "prompt_loose": pytest.approx(0.5), "instruction_loose": pytest.approx(3 / 4),
    }  # fmt: skip
    assert parts.scorer.asked == ["++", "-+"]
    assert replace(with_loose, benchmarks={}) == replace(result, benchmarks={})
    written = json.loads(json.dumps(with_loose.as_json(), allow_nan=False))
    assert set(written["benchmarks"]) == {"ifeval"} and written["responses"] == 4
    assert written["benchmarks"]["ifeval"]["interval"]["prompt_strict"] == [0.0, 0.0]
