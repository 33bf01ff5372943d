"""Rules of sections `checkpoint`, `weight_sync` and `parity`."""

from __future__ import annotations

from collections.abc import Iterator

from herl_megatron.config.loop_keys import samples
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import TRAINS, Purpose
from herl_megatron.config.rules.data import weights_bytes
from herl_megatron.config.schema import Config


def shared_memory_problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Two buckets are in flight at once; a bucket is never larger than the model in float32."""
    if purpose not in TRAINS or not samples(config, purpose=purpose):
        return
    if config.weight_sync.transport == "cuda_ipc":
        if config.cluster.device == "cpu":
            yield (
                "weight_sync.transport is 'cuda_ipc' but cluster.device is 'cpu': it passes GPU"
                " memory from process to process; use 'auto' or 'shared_memory'"
            )
        return
    if config.weight_sync.transport == "auto" and machine.device(config.cluster.device) == "cuda":
        return  # buckets stay in GPU memory where every GPU of an engine has a trainer rank
    stored = weights_bytes(config.model.path)
    if machine.shared_memory_bytes is None or not stored:
        return  # `weight_sync.sync` knows the exact sizes and checks again
    need = 2 * min(config.weight_sync.bucket_bytes, 2 * stored)
    if machine.shared_memory_bytes < need:
        yield (
            f"weight_sync.bucket_bytes {config.weight_sync.bucket_bytes}: two buckets need {need}"
            f" bytes of shared memory but /dev/shm has {machine.shared_memory_bytes} free; free"
            " some, make it larger (docker run --shm-size=2g) or lower bucket_bytes"
        )
