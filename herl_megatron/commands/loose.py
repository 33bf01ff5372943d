"""Loose verdicts of responses that were scored strictly, for the benchmarks that report both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from herl_megatron.benchmarks.known_benchmarks import wants_loose
from herl_megatron.types import CriterionResult, Prompt, Score, Scored


class LooseScorer(Protocol):
    """Whatever scores responses by the best of their eight variants."""

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...


async def loose_verdicts(
    scorer: LooseScorer, prompt: Prompt, texts: Sequence[str], scores: Sequence[Score]
) -> tuple[tuple[CriterionResult, ...], ...]:
    """Of each response its loose verdicts; empty where the prompt's benchmark has none.

    scores: strict ones. What follows everything as it stands does so loosely, too, and is not
    judged again; a response without a score has no loose verdicts either.
    """
    if not wants_loose(prompt):
        return ()
    again = [n for n, score in enumerate(scores) if isinstance(score, Scored) and score.unmet]
    loose = await scorer.score_loosely(prompt, [texts[n] for n in again]) if again else []
    judged = dict(zip(again, loose, strict=True))
    return tuple(
        judged.get(n, score).results if isinstance(score, Scored) else ()
        for n, score in enumerate(scores)
    )
