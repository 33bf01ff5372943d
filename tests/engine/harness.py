"""Real vLLM engines on tiny random models.

One engine lives at a time: vLLM's process groups are shared by all engines of a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._dynamo

from herl_megatron.engine import EngineConfig
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine

# What the environment says, for a process in which other tests imported torch before.
torch.set_num_threads(1)
torch._dynamo.config.disable = True


@contextmanager
def running_engine(
    folder: Path,
    *,
    dtype: str = "float32",
    random_weights: bool = False,
    end_token_ids: tuple[int, ...] = (),
    max_model_tokens: int = 512,
    max_num_seqs: int = 32,
    quantization: str | None = None,
    fp32_output_layer: bool = False,
    tensor_parallel: int = 1,
) -> Iterator[VLLMEngine]:
    """An engine that is shut down at the end."""
    engine = VLLMEngine(
        EngineConfig(
            model_path=str(folder),
            dtype=dtype,
            max_model_tokens=max_model_tokens,
            max_num_seqs=max_num_seqs,
            kv_cache_bytes=32 << 20,
            gpu_memory_utilization=0.5,
            tensor_parallel=tensor_parallel,
            device="cpu",
            end_token_ids=end_token_ids,
            quantization=quantization,
            fp32_output_layer=fp32_output_layer,
            random_weights=random_weights,
        )
    )
    try:
        yield engine
    finally:
        asyncio.run(engine.shutdown())
