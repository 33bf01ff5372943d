"""HealthBench: the clipped mean of the examples' points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from herl_megatron.benchmarks.answered import Answered, mean, per_prompt, rubric_reward
from herl_megatron.benchmarks.measured import Measured, Part, clip, grouped, parts_of
from herl_megatron.types import Prompt, Scored, Verdict


def clipped_points(answered: Sequence[Answered]) -> Measured:
    """`score` (the headline): mean over examples of points earned (deductions included) over the
    positive points, clipped to [0, 1]; a single example may be below 0. `unclipped`: the same as it
    is.

    Parts, clipped likewise, as simple-evals: `theme` of the examples (`theme:...` of their
    `example_tags`), and `axis`: each example's points of the statements of one axis alone
    (`axis:...` of their tags).
    """
    examples = per_prompt(answered, rubric_reward)
    values = [value for _, value in examples]
    metrics = {"score": clip(mean(values)), "unclipped": mean(values)}
    parts = {"theme": grouped(examples, _themes, clipped=True), "axis": _axes(answered)}
    return Measured("score", values, metrics, parts, clipped=True)


def _themes(prompt: Prompt) -> list[str]:
    return _tagged(prompt.extra.get("example_tags"), "theme:")


def _axes(answered: Sequence[Answered]) -> dict[str, Part]:
    found: dict[str, list[float]] = {}
    for one in answered:
        tags = one.prompt.extra.get("tags")
        tags = tags if isinstance(tags, Mapping) else {}
        axes = {cid: _tagged(names, "axis:") for cid, names in tags.items()}
        for axis in sorted({name for names in axes.values() for name in names}):
            ids = {cid for cid, names in axes.items() if axis in names}
            points = [_points(one.prompt, score, ids) for score in one.scored]
            if known := [value for value in points if value is not None]:
                found.setdefault(axis, []).append(mean(known))
    return parts_of(found, clipped=True)


def _points(prompt: Prompt, score: Scored, ids: set[str]) -> float | None:
    """Points of these statements alone; None where none of them is positive."""
    true = {r.criterion_id for r in score.results if r.verdict is Verdict.FOLLOWED}
    known = [c for c in prompt.rubric.criteria if c.id in ids and c.id not in score.left_out]
    possible = sum(c.weight for c in known if c.polarity == "positive")
    if not possible:
        return None
    earned = sum(c.weight if c.polarity == "positive" else -c.weight for c in known if c.id in true)
    return earned / possible


def _tagged(tags: Any, kind: str) -> list[str]:
    """What follows `kind` in those tags that begin with it."""
    listed = tags if isinstance(tags, list | tuple) else ()
    found = [tag for tag in listed if isinstance(tag, str) and tag.startswith(kind)]
    return list(dict.fromkeys(tag.removeprefix(kind) for tag in found))
