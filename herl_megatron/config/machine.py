"""What the configuration rules need to know of the machine they run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from herl_megatron.config.schema import Config
from herl_megatron.device import (
    Device,
    check_precision,
    cuda_device_count,
    has_transformer_engine,
    shared_memory_free_bytes,
)

_SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Machine:
    """Facts, so that every rule can be tested on any machine.

    gpus: CUDA devices that torch sees here; 0 means the CPU is used.
    precision_problem: why `megatron.precision` or `megatron.fp8` cannot be used here, or None.
    shared_memory_bytes: free bytes of shared memory, None where there is no such file system.
    """

    gpus: int = 0
    transformer_engine: bool = False
    precision_problem: str | None = None
    shared_memory_bytes: int | None = None

    def device(self, requested: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
        """The device that a run gets."""
        if requested == "auto":
            return "cuda" if self.gpus else "cpu"
        return requested


def look_at_machine(config: Config) -> Machine:
    """Collect the facts here; starts no process and makes no CUDA context beyond a query."""
    gpus = cuda_device_count()
    kind = Machine(gpus=gpus).device(config.cluster.device)
    problem = None
    if kind == "cpu" or gpus:
        try:
            check_precision(
                Device(kind), precision=config.megatron.precision, fp8=config.megatron.fp8
            )
        except ValueError as error:
            problem = str(error)
    return Machine(
        gpus=gpus,
        transformer_engine=has_transformer_engine(),
        precision_problem=problem,
        shared_memory_bytes=(
            shared_memory_free_bytes(_SHARED_MEMORY) if Path(_SHARED_MEMORY).is_dir() else None
        ),
    )
