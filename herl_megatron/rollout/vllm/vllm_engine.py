"""The rollout engine: vLLM in this process, stepped by one thread, with asynchronous calls on top.

With `tensor_parallel` above 1 the model is in worker processes below this one (`tp_workers`).
The same code serves CPU and GPU. Everything that vLLM holds, and every field that a `_do_*` or
`_on_*` method touches, belongs to the engine thread; the public methods only hand commands to it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import psutil

from herl_megatron.rollout.vllm.setup import check_environment  # isort: skip (before vllm)
from vllm import EngineArgs
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.outputs import RequestOutput
from vllm.v1.engine import FinishReason
from vllm.v1.engine.llm_engine import LLMEngine

from herl_megatron.device import take_peak_memory
from herl_megatron.engine import Bucket, EngineConfig, EngineUsage, aborted
from herl_megatron.rollout.vllm.loop import EngineThread
from herl_megatron.rollout.vllm.requests import (
    check_request,
    check_tokens,
    completion,
    prompt_log_probs,
    sampling_params,
    scoring_params,
)
from herl_megatron.rollout.vllm.tp_workers import start_failure, unlink_shared_memory
from herl_megatron.rollout.vllm.weights import BACKEND, WORKER_EXTENSION
from herl_megatron.types import Completion, FloatArray, GenerateRequest

T = TypeVar("T")

# vLLM's plain `fp8` is for checkpoints that are stored in it. Of the names for quantising on load
# this is the finest that has kernels on the CPU too.
_QUANTIZATION = {None: None, "fp8": "fp8_per_channel"}
_BATCHED_TOKENS = 8192  # prompt tokens of one step; a longer model limit raises it


@dataclass
class _Open:
    """A request inside vLLM: vLLM's own id for it and who waits for its output."""

    request: GenerateRequest | None  # none for scoring
    internal_id: str
    future: Future[Any]


class VLLMEngine:
    """`RolloutEngine` over vLLM. Build it in a process started with `engine_environment`.

    The same seed, prompt and settings give the same tokens and log-probs whatever else is in the
    batch: bit for bit on CPU, except that oneDNN rounds a sequence decoded alone differently when a
    layer has more than about 1000 inputs (1e-5 in fp32); within rounding on GPU. A failed weight
    update or a dead engine thread makes every later call fail with the reason: the engine must
    then be started anew.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Load the model and reserve the KV cache (seconds).

        Raises:
            RuntimeError: the process was not started with `engine_environment`.
            ValueError: vLLM refuses the model or the limits (its message says why).
        """
        check_environment(config.device)
        self._config = config
        self._version = -1 if config.random_weights else 0
        self._unusable = "no weights were synced to it yet" if config.random_weights else ""
        self._updating = False
        self._open: dict[str, _Open] = {}
        # Requests that came during a weight update; submitted when it ends.
        self._held: dict[str, tuple[GenerateRequest, Future[Any]]] = {}
        self._scored = 0
        self._peaks = EngineUsage()
        self._thread = EngineThread(
            build=lambda: _build(config),
            deliver=self._on_output,
            on_end=self._on_end,
            on_step=self._on_step,
        )

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        try:
            futures = await self._call(lambda llm: self._do_generate(llm, list(requests)))
            return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        except asyncio.CancelledError:
            ids = [request.request_id for request in requests]
            self._thread.call(lambda llm: self._do_abort(llm, ids))
            raise

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        """See `RolloutEngine.score_tokens`. Raises `RuntimeError` during a weight update."""
        futures = await self._call(lambda llm: self._do_score(llm, sequences, starts))
        scored = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        return [log_probs[start - 1 :] for log_probs, start in zip(scored, starts, strict=True)]

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `RolloutEngine.abort`. Unknown or finished ids are ignored."""
        await self._call(lambda llm: self._do_abort(llm, request_ids))

    async def start_weight_update(self) -> None:
        """See `RolloutEngine.start_weight_update`."""
        await self._call(self._do_start_update)

    async def load_bucket(self, bucket: Bucket) -> None:
        """See `RolloutEngine.load_bucket`."""
        await self._call(lambda llm: self._do_load(llm, bucket))

    async def finish_weight_update(self, weight_version: int) -> None:
        """See `RolloutEngine.finish_weight_update`."""
        await self._call(lambda llm: self._do_finish_update(llm, weight_version))

    async def weight_version(self) -> int:
        """See `RolloutEngine.weight_version`; -1 before the first sync of dummy weights."""
        return await self._call(lambda llm: self._version)

    async def sleep(self, level: int) -> None:
        """Free GPU memory: level 1 keeps the weights in host memory, level 2 drops them.

        After level 2 the engine refuses to sample until the next weight update.
        """
        await self._call(lambda llm: self._do_sleep(llm, level))

    async def wake(self) -> None:
        """See `RolloutEngine.wake`; vLLM passes over one that is awake, as it is when it starts."""
        if self._config.device != "cpu":
            await self._call(lambda llm: llm.wake_up())

    async def usage(self) -> EngineUsage:
        """See `RolloutEngine.usage`."""
        return await self._call(lambda llm: self._do_usage())

    def stalled_s(self) -> float:
        """See `EngineThread.stalled_s`; any thread may ask."""
        return self._thread.stalled_s()

    async def shutdown(self) -> None:
        """See `RolloutEngine.shutdown`."""
        self._thread.call(lambda llm: self._do_abort(llm, [*self._open, *self._held]))
        await asyncio.to_thread(self._thread.close)

    async def _call(self, function: Callable[[LLMEngine], T]) -> T:
        return await asyncio.wrap_future(self._thread.call(function))

    # From here on: engine thread only.

    def _do_generate(
        self, llm: LLMEngine, requests: list[GenerateRequest]
    ) -> list[Future[Completion]]:
        self._check_usable(allow_update=True)
        seen: set[str] = set()
        for request in requests:
            check_request(
                request,
                vocab_size=llm.model_config.get_vocab_size(),
                max_model_tokens=self._config.max_model_tokens,
            )
            if any(request.request_id in used for used in (seen, self._open, self._held)):
                raise ValueError(f"request id {request.request_id!r} is already in use")
            seen.add(request.request_id)
        futures = []
        for request in requests:
            futures.append(_running_future())
            if self._updating:
                self._held[request.request_id] = (request, futures[-1])
            else:
                self._submit(llm, request, futures[-1])
        return futures

    def _submit(self, llm: LLMEngine, request: GenerateRequest, future: Future[Any]) -> None:
        internal_id = llm.add_request(
            request.request_id,
            {"prompt_token_ids": request.prompt_token_ids.tolist()},
            sampling_params(request, self._config.end_token_ids),
            priority=request.priority,
        )
        self._open[request.request_id] = _Open(request, internal_id, future)

    def _do_score(
        self, llm: LLMEngine, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[Future[FloatArray]]:
        self._check_usable(allow_update=False)
        for index, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            name = f"sequence {index} to score"
            check_tokens(name, sequence, vocab_size=llm.model_config.get_vocab_size())
            if not 1 <= start < len(sequence) <= self._config.max_model_tokens:
                raise ValueError(
                    f"{name} has start {start} and {len(sequence)} tokens; needed are "
                    f"1 <= start < tokens <= {self._config.max_model_tokens} (max_model_tokens)"
                )
        futures = []
        for sequence in sequences:
            request_id = f"score-{self._scored}"
            self._scored += 1
            internal_id = llm.add_request(
                request_id, {"prompt_token_ids": sequence.tolist()}, scoring_params()
            )
            self._open[request_id] = _Open(None, internal_id, _running_future())
            futures.append(self._open[request_id].future)
        return futures

    def _do_abort(self, llm: LLMEngine, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if request_id in self._held:
                _, future = self._held.pop(request_id)
                future.set_result(aborted(request_id, weight_version=self._version))
            opened = self._open.pop(request_id, None)
            if opened is None:
                continue
            # vLLM drops what an aborted request had sampled; take it before.
            state = llm.output_processor.request_states[opened.internal_id]
            output = state.make_request_output([], None, FinishReason.ABORT, None)
            llm.abort_request([request_id])
            assert isinstance(output, RequestOutput), f"output of {request_id!r}: {output}"
            self._resolve(opened, output)

    def _on_step(self, llm: LLMEngine) -> None:
        # The engine's core is in this process, its model's workers may not be.
        scheduler: Any = llm.engine_core.engine_core.scheduler
        running, waiting = scheduler.get_request_counts()
        self._peaks = EngineUsage(
            kv_cache=max(self._peaks.kv_cache, scheduler.get_kv_cache_usage()),
            running=max(self._peaks.running, running),
            waiting=max(self._peaks.waiting, waiting),
        )

    def _do_usage(self) -> EngineUsage:
        peaks, self._peaks = self._peaks, EngineUsage()
        host = psutil.Process().memory_info().rss
        return replace(peaks, host_bytes=host, device_bytes=take_peak_memory())

    def _on_output(self, output: RequestOutput) -> None:
        self._resolve(self._open.pop(output.request_id), output)

    def _resolve(self, opened: _Open, output: RequestOutput) -> None:
        if opened.request is None:
            opened.future.set_result(prompt_log_probs(output))
        else:
            opened.future.set_result(
                completion(
                    opened.request.request_id, output.outputs[0], weight_version=self._version
                )
            )

    def _on_end(self, reason: RuntimeError) -> None:
        waiting = [opened.future for opened in self._open.values()]
        waiting += [future for _, future in self._held.values()]
        self._open.clear()
        self._held.clear()
        for future in waiting:
            future.set_exception(reason)

    def _do_start_update(self, llm: LLMEngine) -> None:
        if self._updating:
            raise RuntimeError("a weight update is already under way")
        if self._open:
            raise RuntimeError(
                f"a weight update cannot start while {len(self._open)} requests are running "
                f"(first: {next(iter(self._open))!r}); wait for them or abort them"
            )
        self._unusable = "a weight update did not finish; start the engine anew"
        llm.collective_rpc("start_weight_update")
        self._updating = True

    def _do_load(self, llm: LLMEngine, bucket: Bucket) -> None:
        if not self._updating:
            raise RuntimeError("load_bucket needs start_weight_update first")
        try:
            llm.collective_rpc("update_weights", args=({"bucket": bucket},))
        except BaseException as error:
            self._fail_update(error)
            raise

    def _do_finish_update(self, llm: LLMEngine, weight_version: int) -> None:
        if not self._updating:
            raise RuntimeError("finish_weight_update needs start_weight_update first")
        try:
            llm.collective_rpc("finish_weight_update")
            if not llm.reset_prefix_cache():
                raise RuntimeError("vLLM did not reset its prefix cache")
        except BaseException as error:
            self._fail_update(error)
            raise
        self._version = weight_version
        self._unusable = ""
        self._updating = False
        held, self._held = self._held, {}
        for request, future in held.values():
            self._submit(llm, request, future)

    def _fail_update(self, error: BaseException) -> None:
        self._updating = False
        self._unusable = f"its weight update failed ({error}); start the engine anew"
        held, self._held = self._held, {}
        for _, future in held.values():
            future.set_exception(RuntimeError(f"the engine cannot sample: {self._unusable}"))

    def _do_sleep(self, llm: LLMEngine, level: int) -> None:
        if level not in (1, 2):
            raise ValueError(f"sleep level is {level}; it must be 1 or 2")
        if self._open:
            raise RuntimeError(f"the engine cannot sleep while {len(self._open)} requests run")
        if self._config.device == "cpu":
            return  # vLLM's CPU build has nothing to free
        llm.sleep(level)
        if level == 2:
            self._unusable = "its weights were dropped by sleep level 2; sync weights first"

    def _check_usable(self, *, allow_update: bool) -> None:
        if self._updating:
            if not allow_update:
                raise RuntimeError("a weight update is under way")
        elif self._unusable:
            raise RuntimeError(f"the engine cannot sample: {self._unusable}")


def _build(config: EngineConfig) -> LLMEngine:
    """Build the engine and sample one token: what its kernels do not support fails here."""
    vllm_config = _engine_args(config).create_engine_config()
    # Scoring a sequence of full length samples one token beyond it, which nobody reads; vLLM has
    # compared the length with the model's own limit by now.
    vllm_config.model_config.max_model_len += 1
    llm = _start(vllm_config)
    llm.add_request("warm-up", {"prompt_token_ids": [0]}, scoring_params(prompt=False))
    while llm.has_unfinished_requests():
        llm.step()
    llm.reset_prefix_cache()
    return llm


def _start(config: VllmConfig) -> LLMEngine:
    if config.parallel_config.world_size == 1:
        return LLMEngine.from_vllm_config(config, disable_log_stats=True)
    try:
        llm = LLMEngine.from_vllm_config(config, disable_log_stats=True)
    except Exception as error:  # process border: vLLM says no more than that a worker failed
        raise start_failure(error) from error
    llm.collective_rpc("join_engine", args=(os.getpid(),))
    unlink_shared_memory()
    return llm


def _engine_args(config: EngineConfig) -> EngineArgs:
    on_cpu = config.device == "cpu"
    return EngineArgs(
        model=config.model_path,
        skip_tokenizer_init=True,  # token ids in and out
        generation_config="vllm",  # no sampling defaults from the model's folder
        dtype=config.dtype,
        quantization=_QUANTIZATION[config.quantization],
        hf_overrides={"head_dtype": "float32"} if config.fp32_output_layer else {},
        load_format="dummy" if config.random_weights else "auto",
        use_tqdm_on_load=False,
        max_model_len=config.max_model_tokens,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel,
        distributed_executor_backend="mp" if config.tensor_parallel > 1 else "uni",
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_bytes if on_cpu else None,
        enforce_eager=on_cpu,
        enable_sleep_mode=not on_cpu,
        logprobs_mode="processed_logprobs",
        scheduling_policy="priority",
        # vLLM's CPU build dies on a seeded request whose prompt is cut over two steps.
        enable_chunked_prefill=False if on_cpu else None,
        max_num_batched_tokens=max(config.max_model_tokens + 1, _BATCHED_TOKENS),
        async_scheduling=False,  # a request's partial output is then exact between two steps
        disable_log_stats=True,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls=WORKER_EXTENSION,
    )


def _running_future() -> Future[Any]:
    """A future that its waiter cannot cancel: only the engine thread ends it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
