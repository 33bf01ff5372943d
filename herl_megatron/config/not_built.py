"""What a configuration may ask for on GPUs and this version cannot do; `herl plan` counts it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from herl_megatron.config.purpose import SAMPLES, Purpose
from herl_megatron.config.schema import Config


def not_built(config: Config, *, purpose: Purpose, device: Literal["cpu", "cuda"]) -> Iterator[str]:
    """What a run of this configuration would need that does not exist yet."""
    if device == "cpu":
        return  # what is refused there is refused for good, with its own reason
    if purpose in SAMPLES and config.rollout.tensor_parallel > 1:
        yield (
            f"rollout.tensor_parallel is {config.rollout.tensor_parallel}: an engine is started"
            " on one GPU, several are not built yet; use 1"
        )
