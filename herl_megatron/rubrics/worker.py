"""What one scoring process does with one group: every check on every response. No Ray here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from herl_megatron.rubrics.checks import registry
from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.rubrics.checks.registry import run_check, run_user_checks
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.types import CriterionResult, Rubric, Score


def score_texts(
    rubric: Rubric, texts: Sequence[str], *, check_timeout_s: float, mode: Mode = "strict"
) -> list[Score]:
    """One score per text, in order; `check_timeout_s` bounds each check on each text.

    Nothing that a check does comes out of it. Raises CheckModuleError if a user's module can no
    longer be imported.
    """
    scores = []
    for text in texts:
        theirs = run_user_checks(rubric.criteria, text, mode=mode, timeout_s=check_timeout_s)
        scores.append(score_text(rubric, text, theirs, check_timeout_s=check_timeout_s, mode=mode))
    return scores


def score_text(
    rubric: Rubric,
    text: str,
    theirs: Mapping[str, CriterionResult],
    *,
    check_timeout_s: float,
    mode: Mode,
) -> Score:
    """The score of one text, given the results of users' checks (`registry.run_user_checks`)."""
    results = [
        theirs[criterion.id]
        if criterion.id in theirs
        else run_check(criterion, text, mode=mode, timeout_s=check_timeout_s)
        for criterion in rubric.criteria
    ]
    return score_response(rubric, results)


def needs_of(rubric: Rubric) -> set[str]:
    """The packages and resources that must be ready before its checks run (`registry.prepare`)."""
    needed: set[str] = set()
    for criterion in rubric.criteria:
        check = registry.find(criterion.check)
        if check is not None and not isinstance(check, registry.UserCheck):
            needed.update(check.requires, check.data)  # a user's are made ready in their process
    return needed
