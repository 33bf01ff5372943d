"""FP8 rollouts, the reference on the host and engines that drop their weights, in a whole run."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e


def test_fp8_rollouts_beside_a_reference_on_the_host(forked_herl: Start, small: list[str]) -> None:
    """The gate sees the engine's rounding; the reference is what the policy was in the first step,
    and only there."""
    run = forked_herl(
        "train", "quickstart_cpu.yaml", *small, "megatron.precision=bf16", "rollout.dtype=bf16",
        "train.prompts_per_optimizer_step=4", "parity.every=1", "optimizer.lr=1e-3",
        "optimizer.warmup_steps=0", "train.export=false", "data.eval=", "train.eval_every=0",
        "rollout.quantization=fp8", "algorithm.mismatch_weight=true", "rollout.sleep=2",
        "algorithm.kl_coef=0.1", "megatron.reference=host",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    first, second = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    for row in (first, second):
        assert 0.01 < row["parity/mean"] < 0.3
        assert row["time/turns_s"] > 0
    assert first["train/kl"] == pytest.approx(0, abs=1e-6)
    assert second["train/kl"] > 1e-4
    assert run.leftovers() == []
