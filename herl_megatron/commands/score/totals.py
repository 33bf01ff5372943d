"""What `herl score` sums up: prompt-level, instruction-level, per check, per source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from herl_megatron.data.responses import ResponseRow
from herl_megatron.rubrics.breakdown import credits_of
from herl_megatron.rubrics.rubric import counted_under
from herl_megatron.types import Score, Scored, Verdict


@dataclass
class Share:
    """How many of how many."""

    satisfied: int = 0
    of: int = 0

    def add(self, satisfied: bool) -> None:
        """Count one more."""
        self.satisfied += satisfied
        self.of += 1

    def as_json(self) -> dict[str, Any]:
        """With the share itself, null of nothing."""
        share = self.satisfied / self.of if self.of else None
        return {"satisfied": self.satisfied, "of": self.of, "share": share}


@dataclass
class Totals:
    """Sums over scored responses; those without a score are counted by reason, never averaged.

    prompts: responses that satisfy every criterion that could be verified (IFEval's prompt level).
    criteria: single criteria (its instruction level). checks: the same by check; judge criteria
    are together under `judge`. credits: of the checks that return numbers. unverifiable: criteria
    left out, by reason.
    """

    responses: int = 0
    rewards: list[float] = field(default_factory=list)
    prompts: Share = field(default_factory=Share)
    criteria: Share = field(default_factory=Share)
    checks: dict[str, Share] = field(default_factory=dict)
    credits: dict[str, list[float]] = field(default_factory=dict)
    unscored: Counter[str] = field(default_factory=Counter)
    unverifiable: Counter[str] = field(default_factory=Counter)

    def add(self, row: ResponseRow, score: Score) -> None:
        """Count one response."""
        self.responses += 1
        if not isinstance(score, Scored):
            self.unscored[score.reason] += 1
            return
        self.rewards.append(score.reward)
        self.prompts.add(bool(score.satisfied) and not score.unmet)
        by_id = {criterion.id: criterion for criterion in row.prompt.rubric.criteria}
        for criterion_id in (*score.satisfied, *score.unmet):
            satisfied = criterion_id in score.satisfied
            self.criteria.add(satisfied)
            self.checks.setdefault(counted_under(by_id[criterion_id]), Share()).add(satisfied)
        for name, value in credits_of(row.prompt.rubric, score):
            self.credits.setdefault(name, []).append(value)
        for result in score.results:
            if result.verdict is Verdict.UNVERIFIABLE:
                self.unverifiable[result.reason] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values; counters by frequency."""
        mean = sum(self.rewards) / len(self.rewards) if self.rewards else None
        return {
            "responses": self.responses,
            "scored": len(self.rewards),
            "unscored": self.responses - len(self.rewards),
            "mean_reward": mean,
            # HealthBench clips the mean of its examples; elsewhere this changes nothing.
            "mean_reward_clipped": None if mean is None else min(1.0, max(0.0, mean)),
            "prompt_level": self.prompts.as_json(),
            "instruction_level": self.criteria.as_json(),
            "per_check": {name: self._of_check(name) for name in sorted(self.checks)},
            "unscored_by_reason": dict(self.unscored.most_common()),
            "unverifiable_by_reason": dict(self.unverifiable.most_common()),
        }

    def _of_check(self, name: str) -> dict[str, Any]:
        """Of one that returns numbers also their mean; `share` is that of full credit."""
        values = self.credits.get(name)
        mean = {"mean_credit": sum(values) / len(values)} if values else {}
        return self.checks[name].as_json() | mean


def top_reasons(totals: dict[str, Any], n: int) -> list[str]:
    """The most frequent reasons of unscored responses and of criteria left out, `n` of each."""
    return [
        f"{what}: {count} x {reason}"
        for what, key in (
            ("unscored", "unscored_by_reason"),
            ("left out", "unverifiable_by_reason"),
        )
        for reason, count in list(totals[key].items())[:n]
    ]
