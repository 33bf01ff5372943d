"""What each worker asks of Ray: nothing on CPU, a share of a GPU when colocated."""

from __future__ import annotations

from typing import Any

_COLOCATED_SHARE = 0.45  # trainer rank and engine take turns on one GPU; Ray only counts the shares


def actor_options(*, device: str, env: dict[str, str]) -> dict[str, Any]:
    """Ray options of a trainer rank or an engine.

    Workers ask for 0 logical CPUs, so the number of cores never keeps a run from starting.
    """
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": env}, "max_restarts": 0}
    if device == "cuda":
        options["num_gpus"] = _COLOCATED_SHARE
    return options


def trainer_environment(threads: int) -> dict[str, str]:
    """Environment of a trainer rank's process.

    One OpenMP thread by default: idle threads spin and take the cores from the other workers.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_COMPILE_DISABLE": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
