"""One unit's way to its judgement: what is known so far, and what it says in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from herl_megatron.rubrics.aggregations import graded_result
from herl_megatron.rubrics.judge.units import Unit
from herl_megatron.types import CriterionResult, Verdict

_REFUSED = "judge: refused: "


@dataclass(eq=False)
class Work:
    """One unit under way. `verdicts` by position, kept over attempts; `spent_s` is active time."""

    unit: Unit
    first_attempt: int = 0
    """Number of its first call, from which order, markers and seed come."""
    verdicts: dict[int, bool] = field(default_factory=dict)
    grade: int | None = None
    calls: int = 0
    useless: int = 0
    """Answers that left something missing: the judge was there, so no pause gives them back."""
    spent_s: float = 0.0

    @property
    def missing(self) -> list[int]:
        """Positions without a verdict."""
        if self.unit.form.grading is not None:
            return [] if self.grade is not None else list(range(len(self.unit.criteria)))
        return [i for i in range(len(self.unit.criteria)) if i not in self.verdicts]


@dataclass(frozen=True)
class Judgement:
    """Verdicts and grade of one unit, and why something is missing (else empty)."""

    verdicts: dict[int, bool]
    grade: float | None
    reason: str = ""
    said: str = ""
    """What is to be known of a grade that nobody gave (`BenchmarkGrader.failed_grade`)."""

    @classmethod
    def of_all(cls, samples: Sequence[Judgement]) -> Judgement:
        """What several judgements of one unit say together: the majority, or the mean grade."""
        if len(samples) == 1:
            return samples[0]
        if failed := [sample for sample in samples if sample.reason]:
            return cls({}, None, failed[0].reason)
        verdicts = {
            position: 2 * sum(sample.verdicts[position] for sample in samples) > len(samples)
            for position in samples[0].verdicts
        }
        given = [sample for sample in samples if not sample.said] or samples
        grades = [sample.grade for sample in given if sample.grade is not None]
        grade = sum(grades) / len(grades) if grades else None
        return cls(verdicts, grade, said=given[0].said)

    def result(self, unit: Unit, position: int) -> CriterionResult:
        """What it says about one criterion; ids may differ between units that share it."""
        name = unit.criteria[position].id
        if self.grade is not None:
            result = graded_result(name, unit.form, self.grade)
            return replace(result, reason=f"judge: {self.said}") if self.said else result
        if position not in self.verdicts:
            return CriterionResult(name, Verdict.UNVERIFIABLE, f"judge: {self.reason}")
        followed = self.verdicts[position]
        return CriterionResult(name, Verdict.FOLLOWED if followed else Verdict.NOT_FOLLOWED)

    def dump(self) -> str:
        """For the cache; only of a judgement that lacks nothing."""
        verdicts = [self.verdicts[i] for i in sorted(self.verdicts)]
        return json.dumps({"verdicts": verdicts, "grade": self.grade}, allow_nan=False)

    @classmethod
    def read(cls, text: str, unit: Unit) -> Judgement | None:
        """What `dump` wrote about `unit`; None, as if there were none, where it does not say all
        that was asked."""
        try:
            kept = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(kept, dict):
            return None
        verdicts, grade = kept.get("verdicts"), kept.get("grade")
        if unit.form.grading is not None:
            if isinstance(grade, int) and not isinstance(grade, bool):
                return cls({}, grade) if 1 <= grade <= unit.form.grading.top else None
            return None
        if not isinstance(verdicts, list) or len(verdicts) != len(unit.criteria):
            return None
        if grade is not None or not all(isinstance(verdict, bool) for verdict in verdicts):
            return None
        return cls(dict(enumerate(verdicts)), None)


def was_refused(result: CriterionResult) -> bool:
    """Whether the judge would not judge it, so that asking once more is in vain."""
    return result.verdict is Verdict.UNVERIFIABLE and result.reason.startswith(_REFUSED)
