"""Import vLLM with what environment variables cannot give. Must be imported before vllm.

Importing this module has effects on the process, on purpose: they belong to the import of vllm.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from typing import TypeVar

from herl_megatron.rollout.vllm.engine_environment import engine_environment

# A whole number of GiB that would override EngineConfig.kv_cache_bytes.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
# Where engines would begin to look for a free port: two that start on one node would find the same.
os.environ.pop("VLLM_PORT", None)

# Says at every import on CPU that Triton is absent, which it should be.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)

gc.disable()  # the import makes many objects that live for ever: 1.5 s of collections for nothing
import vllm.model_executor.models.registry as registry  # noqa: E402
import vllm.v1.engine.llm_engine  # noqa: E402, F401

gc.enable()
gc.freeze()


T = TypeVar("T")


def _run_here(function: Callable[[], T]) -> T:
    return function()


# By default vLLM inspects a model class in a child process that imports vllm once more (11 s).
registry._run_in_subprocess = _run_here


def check_environment(device: str) -> None:
    """Raise `RuntimeError` if this process was not started with `engine_environment`."""
    missing = [name for name in engine_environment(device, threads=1) if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"environment variables {', '.join(missing)} are not set; they act only before torch "
            "is imported: start the process with"
            " rollout.vllm.engine_environment.engine_environment()"
        )
