"""One step's metrics from those of its optimizer steps."""

from __future__ import annotations

import pytest

from herl_megatron.cluster.trainer import step_metrics
from herl_megatron.config.schema import RolloutConfig

TWO = [
    {"loss": 1.0, "mismatch_max": 4.0, "mismatch_mean": 1.0, "sampled_tokens": 1.0},
    {"loss": 2.0, "mismatch_max": 3.0, "mismatch_mean": 4.5, "sampled_tokens": 3.0},
]


def test_means_and_maxima() -> None:
    got = step_metrics(TWO, RolloutConfig())
    want = {"loss": 1.5, "mismatch_max": 4.0, "mismatch_mean": 1.375, "sampled_tokens": 2.0}
    assert got == want
    assert step_metrics([], RolloutConfig()) == {}


@pytest.mark.parametrize("setting", [{"temperature": 0.9}, {"top_p": 0.9}, {"top_k": 50}], ids=str)
def test_no_mismatch_where_log_probs_do_not_compare(setting: dict[str, float]) -> None:
    rollout = RolloutConfig.model_validate(setting)
    assert step_metrics(TWO, rollout) == {"loss": 1.5, "sampled_tokens": 2.0}
