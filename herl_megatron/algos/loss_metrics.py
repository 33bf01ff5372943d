"""Metrics of a step from what each of its optimizer steps added up.

An optimizer step hands over sums together with their counts, so that a mean is divided once and
over all tokens of the step: an optimizer step with few tokens weighs little, one with none nothing,
and a mean without any token has no value instead of the value 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MEANS: Mapping[str, str] = {
    "clip_fraction": "sampled_tokens",
    "kl_old_new": "sampled_tokens",
    "ratio_mean": "sampled_tokens",
    "mismatch_mean": "sampled_tokens",
    "mismatch_truncated": "sampled_tokens",
    "mismatch_kl": "sampled_tokens",
    "revision_ratio_mean": "revision_tokens",
    "padding_ratio": "row_tokens",
}
"""Sums and the counts they are divided by."""

MAXIMA: Mapping[str, str] = {"mismatch_max": "sampled_tokens"}
"""Numbers of which the largest is reported, and the count without which there is none."""


def combine(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics over the optimizer steps `steps`, each as `MegatronActor.train_step` returned it.

    Of `MEANS` and `MAXIMA` the ratio of sums and the largest, left out where the count is 0; of
    everything else (losses, norms, counts) the mean over the optimizer steps.
    """
    values: dict[str, float] = {}
    for name in steps[0] if steps else ():
        series = [step[name] for step in steps]
        if name in MEANS:
            count = sum(step[MEANS[name]] for step in steps)
            if count:
                values[name] = sum(series) / count
        elif name in MAXIMA:
            if any(step[MAXIMA[name]] for step in steps):
                values[name] = max(series)
        else:
            values[name] = sum(series) / len(series)
    return values
