"""What a step's seconds come to in tokens and operations, by which layouts and engines are tuned.

Operations that count as useful, per token of a row: three forward passes' worth for learning from
it (Kaplan et al. 2020, arXiv 2001.08361, section 2.1: a backward pass is two), and one for each
pass that only computes log-probs. Recomputation is work, but not useful: it does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_LEARNING_PASSES = 3


@dataclass(frozen=True)
class Throughput:
    """Of one run.

    trainer_devices, engine_devices: GPUs, or processes on the CPU, of each side.
    forward_flops: operations of one token's forward pass in a row of so many tokens.
    log_prob_passes: passes over each row that only compute log-probs, per step.
    peak_flops: of one trainer device at its dense bf16 rate; None where it is not known, such as
        on the CPU: then there is no MFU.
    """

    trainer_devices: int
    engine_devices: int
    forward_flops: Callable[[float], float]
    log_prob_passes: int
    peak_flops: float | None

    def metrics(
        self, values: Mapping[str, float], *, rows: int, row_tokens: int
    ) -> dict[str, float]:
        """`perf/...` of a step, from its times and token counts in `values`.

        rows, row_tokens: that were trained on, and their tokens with context. What took no time has
        no rate and is left out.
        """
        sampled = values.get("rollout/tokens", 0.0) + values.get("rollout/revision_tokens", 0.0)
        found = _rate("perf/tokens_per_s", sampled, values.get("time/total_s"))
        for name, tokens, seconds, devices in (
            ("rollout", sampled, values.get("time/generation_s"), self.engine_devices),
            ("train", row_tokens, values.get("time/train_s"), self.trainer_devices),
        ):
            found |= _rate(f"perf/{name}_tokens_per_s", tokens, seconds)
            found |= _rate(f"perf/{name}_tokens_per_s_per_device", tokens / devices, seconds)
        train_s = values.get("time/train_s")
        if rows and train_s:
            passes = _LEARNING_PASSES + self.log_prob_passes
            operations = passes * row_tokens * self.forward_flops(row_tokens / rows)
            per_device = operations / train_s / self.trainer_devices
            found["perf/train_tflops_per_s_per_device"] = per_device / 1e12
            if self.peak_flops is not None:
                found["perf/mfu"] = per_device / self.peak_flops
        return found


def _rate(name: str, amount: float, seconds: float | None) -> dict[str, float]:
    return {name: amount / seconds} if seconds and amount else {}
