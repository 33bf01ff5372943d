"""What the pipeline and the weight sync ask of a rollout engine.

`rollout.vllm_engine` is the one implementation; `cluster.workers` puts it behind a Ray actor with
the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from herl_megatron.types import Completion, GenerateRequest


@dataclass(frozen=True)
class EngineConfig:
    """All an engine needs to start: a Hugging Face folder and limits (tokens, bytes)."""

    model_path: str
    dtype: str
    """`float32` or `bfloat16`."""
    max_model_tokens: int
    """Longest prompt plus response."""
    max_num_seqs: int
    kv_cache_bytes: int
    gpu_memory_utilization: float
    tensor_parallel: int
    device: str
    """`cpu` or `cuda`."""
    random_weights: bool = False
    """Start with dummy weights; the first weight sync fills them."""


@dataclass(frozen=True)
class BucketTensor:
    """One tensor inside a bucket: Hugging Face name, torch dtype name, shape, byte offset."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Bucket:
    """A slice of the weight stream lying in a shared-memory file at `path`."""

    path: str
    num_bytes: int
    tensors: tuple[BucketTensor, ...]


class RolloutEngine(Protocol):
    """An asynchronous engine: token ids in, token ids and log-probs out."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Sample every request; returns in the order of `requests` when all are finished."""
        ...

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        """Log-probs (temperature 1) of `sequences[i][starts[i]:]`, `[response]` float32 each."""
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Stop these requests; their completions return what was sampled, reason `abort`."""
        ...

    async def start_weight_update(self) -> None:
        """Pause generation and get ready for buckets."""
        ...

    async def load_bucket(self, bucket: Bucket) -> None:
        """Load the tensors of one bucket; the file may be reused after this returns."""
        ...

    async def finish_weight_update(self, weight_version: int) -> None:
        """Finish loading, reset the prefix cache, set the version and resume."""
        ...

    async def weight_version(self) -> int:
        """Version of the weights now served."""
        ...

    async def sleep(self, level: int) -> None:
        """Free device memory (GPU only; nothing to free on CPU)."""
        ...

    async def wake(self) -> None:
        """Undo `sleep`."""
        ...

    async def shutdown(self) -> None:
        """Stop the engine thread; open requests end with reason `abort`."""
        ...
