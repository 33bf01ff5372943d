"""Settings of the environment and of the machines that do not go well with a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from herl_megatron.config.schema import Config

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_EXPANDABLE = "expandable_segments:True"


def environment_warnings(config: Config, env: Mapping[str, str]) -> Iterator[str]:
    """What `env`, which the processes of a run on GPUs would inherit, makes slow or fragile."""
    for name in _ALLOCATOR:
        if _EXPANDABLE in env.get(name, ""):
            yield (
                f"{name} has {_EXPANDABLE}: vLLM 0.32 turns it off for the memory that sleeps,"
                " older ones refuse to sleep, and weights handed over by CUDA IPC arrive several"
                " times slower; unset it"
            )
    if env.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield "CUDA_LAUNCH_BLOCKING is set: every kernel waits for the one before; unset it"
    if env.get("PYTORCH_NO_CUDA_MEMORY_CACHING", "0") not in ("", "0"):
        yield (
            "PYTORCH_NO_CUDA_MEMORY_CACHING is set: every tensor asks the driver for memory, and"
            " engines that sleep need PyTorch's memory pools; unset it"
        )
    crowded = config.megatron.tensor_parallel > 1 or config.rollout.tensor_parallel > 1
    if crowded and env.get("NCCL_P2P_DISABLE", "0") not in ("", "0"):
        yield "NCCL_P2P_DISABLE is set: TP inside a node goes through host memory; unset it"
    connections = env.get("CUDA_DEVICE_MAX_CONNECTIONS")
    if connections not in (None, "1"):
        yield (
            f"CUDA_DEVICE_MAX_CONNECTIONS={connections} is not used: trainer ranks get 1, on which"
            " Megatron-Core's overlap of communication relies"
        )
