"""What the pipeline and the weight sync ask of a rollout engine.

`rollout.vllm.vllm_engine` is the one implementation; `cluster.workers` puts it behind a Ray actor,
in a process started with its `engine_environment`. Another engine is a folder beside
`rollout/vllm/` with the same two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from herl_megatron.types import Completion, DeviceKind, GenerateRequest


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
    """On the CPU, of each of its `tensor_parallel` processes."""
    gpu_memory_utilization: float
    tensor_parallel: int
    device: DeviceKind
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end a response (`finish_reason` `stop`); none means every response runs to
    `max_tokens`."""
    quantization: str | None = None
    """`fp8`: matrices in FP8 with a scale per output channel, quantised on every load."""
    fp32_output_layer: bool = False
    """Logits in float32 whatever `dtype` is."""
    random_weights: bool = False
    """Start with dummy weights; the first weight sync fills them and nothing is sampled before."""


@dataclass(frozen=True)
class BucketTensor:
    """One tensor inside a bucket: Hugging Face name, torch dtype name, shape, byte offset."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Bucket:
    """A slice of the weight stream lying in a shared-memory file at `path`, or in GPU memory.

    handles: of GPU memory (`weight_sync.transport_ipc`), by the GPU's UUID.
    """

    path: str
    num_bytes: int
    tensors: tuple[BucketTensor, ...]
    handles: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineUsage:
    """What an engine's work took at most since it was last asked.

    kv_cache: share of its KV cache, in [0, 1]; running, waiting: requests in the batch and behind
    it; host_bytes: resident memory of its process, now; device_bytes: of its GPU, 0 on the CPU or
    where the model is in processes of its own.
    """

    kv_cache: float = 0.0
    running: int = 0
    waiting: int = 0
    host_bytes: int = 0
    device_bytes: int = 0


def aborted(request_id: str, *, weight_version: int) -> Completion:
    """The completion of a request that was aborted before its first token."""
    return Completion(
        request_id=request_id,
        token_ids=np.zeros(0, dtype=np.int32),
        log_probs=np.zeros(0, dtype=np.float32),
        finish_reason="abort",
        weight_version=weight_version,
    )


class EngineLost(RuntimeError):
    """The engine died, hangs or can serve no more: only a new one helps.

    Any call may raise it where the engine lives in another process; it says which engine and why.
    """


class RolloutEngine(Protocol):
    """An asynchronous engine: token ids in, token ids and log-probs out."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Sample every request; returns in the order of `requests` when all are finished.

        Calls made during a weight update wait for its end. Raises `ValueError` for a request that
        cannot be served (too long, token outside the vocabulary) and `RuntimeError` when the
        engine has died or holds no valid weights. Cancelling the call aborts its requests.
        """
        ...

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        """Log-probs (temperature 1) of `sequences[i][starts[i]:]`, `[response]` float32 each.

        Starts are at least 1: the first token of a sequence has no prediction.
        """
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Stop these requests; their completions return what was sampled, reason `abort`."""
        ...

    async def start_weight_update(self) -> None:
        """Pause generation and get ready for buckets.

        Raises `RuntimeError` while requests are running: wait for them or abort them first.
        """
        ...

    async def load_bucket(self, bucket: Bucket) -> None:
        """Load the tensors of one bucket; the file may be reused after this returns.

        Raises `ValueError` for a tensor that the model does not have or that came before (an engine
        of several processes a `RuntimeError` that quotes it). After any failure the engine refuses
        to sample until it is started anew.
        """
        ...

    async def finish_weight_update(self, weight_version: int) -> None:
        """Finish loading, reset the prefix cache, set the version and resume.

        Raises `RuntimeError` that names the missing tensors if the update was not complete.
        """
        ...

    async def weight_version(self) -> int:
        """Version of the weights now served."""
        ...

    async def sleep(self, level: int) -> None:
        """Free device memory: level 1 keeps the weights on the host, 2 drops them (GPU only; there
        is nothing to free on CPU). Raises `RuntimeError` while requests are running."""
        ...

    async def wake(self) -> None:
        """Undo `sleep`; an engine that is awake, like one just started, stays as it is."""
        ...

    async def usage(self) -> EngineUsage:
        """Peaks since the last call, taken after each of its steps; zeros where it did nothing."""
        ...

    async def shutdown(self) -> None:
        """Stop the engine thread; open requests end with reason `abort`."""
        ...


class HostedEngine(RolloutEngine, Protocol):
    """An engine in this process, which says beside what it is asked whether it gets on."""

    def stalled_s(self) -> float:
        """Seconds that the step or command under way has taken; 0 with nothing to do. Answers at
        once, whatever hangs."""
        ...
