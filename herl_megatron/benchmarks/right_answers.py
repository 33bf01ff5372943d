"""MATH-500 and GPQA: the share of right answers, which rules check."""

from __future__ import annotations

from collections.abc import Sequence

from herl_megatron.benchmarks.answered import Answered, all_met, mean, per_prompt
from herl_megatron.benchmarks.measured import Measured, grouped, noted

_KINDS = {
    "subject": ("subject", "subdomain", "Subdomain"),
    "level": ("level", "difficulty"),
    "domain": ("domain", "High-level domain", "high_level_domain"),
}
"""Parts, and where rows say what they are of."""


def right_answers(answered: Sequence[Answered]) -> Measured:
    """`accuracy` (the headline): share of responses whose answer is right, of several samples the
    mean (pass@1).

    Parts, of rows that name them: `subject`, `level`, `domain`.
    """
    right = per_prompt(answered, all_met)
    parts = {
        kind: grouped(right, lambda prompt, keys=keys: noted(prompt, *keys))  # type: ignore[misc]
        for kind, keys in _KINDS.items()
    }
    values = [value for _, value in right]
    return Measured("accuracy", values, {"accuracy": mean(values)}, parts)
