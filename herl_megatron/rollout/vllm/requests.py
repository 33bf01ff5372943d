"""Our requests and completions in vLLM's terms; nothing here holds state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from herl_megatron.types import Completion, FinishReason, FloatArray, GenerateRequest, IntArray

_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def check_tokens(name: str, token_ids: IntArray, *, vocab_size: int) -> None:
    """Raise `ValueError` for an empty sequence or a token outside the vocabulary.

    vLLM does not check token ids without a tokenizer; one bad id would end the engine.
    """
    if len(token_ids) == 0:
        raise ValueError(f"{name} has no tokens")
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} has token id {low if low < 0 else high}; the model's vocabulary is "
            f"0..{vocab_size - 1}"
        )


def check_request(request: GenerateRequest, *, vocab_size: int, max_model_tokens: int) -> None:
    """Raise `ValueError`, naming the request, for one that the engine cannot serve."""
    name = f"request {request.request_id!r}"
    check_tokens(name, request.prompt_token_ids, vocab_size=vocab_size)
    sampling = request.sampling
    if sampling.max_tokens < 1:
        raise ValueError(f"{name} asks for max_tokens={sampling.max_tokens}; it must be at least 1")
    total = len(request.prompt_token_ids) + sampling.max_tokens
    if total > max_model_tokens:
        raise ValueError(
            f"{name} needs {len(request.prompt_token_ids)} prompt tokens + {sampling.max_tokens} "
            f"max_tokens = {total}, but the engine holds {max_model_tokens} per sequence; shorten "
            "the prompt, lower max_response_tokens or raise max_model_tokens"
        )
    if not 0 <= request.seed < 2**63:
        raise ValueError(f"{name} has seed {request.seed}; it must be in 0..2**63-1")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ValueError(
            f"{name} has temperature {sampling.temperature} and top_p {sampling.top_p}; needed "
            "are temperature >= 0 and 0 < top_p <= 1"
        )


def sampling_params(request: GenerateRequest, end_token_ids: Sequence[int]) -> SamplingParams:
    """vLLM's parameters of one request: nothing is taken from the model's generation defaults."""
    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=request.seed,
        max_tokens=sampling.max_tokens,
        stop_token_ids=list(end_token_ids),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params(*, prompt: bool = True) -> SamplingParams:
    """Parameters that make vLLM report every prompt token's log-prob under the plain model.

    Prompt log-probs skip temperature and truncation in every `logprobs_mode`. One token must be
    sampled; it is not used. `prompt=False` leaves the log-probs out (a warm-up).
    """
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        prompt_logprobs=0 if prompt else None,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completion(request_id: str, output: CompletionOutput, *, weight_version: int) -> Completion:
    """One finished (or aborted) output as a `Completion`."""
    reason = _FINISH_REASONS.get(str(output.finish_reason))
    if reason is None:
        raise RuntimeError(
            f"request {request_id!r} ended with vLLM's reason {output.finish_reason!r}"
        )
    return Completion(
        request_id=request_id,
        token_ids=np.asarray(output.token_ids, dtype=np.int32),
        log_probs=_flat(output.logprobs, len(output.token_ids)),
        finish_reason=reason,
        weight_version=weight_version,
    )


def prompt_log_probs(output: RequestOutput) -> FloatArray:
    """Log-prob of every prompt token but the first, `[prompt - 1]`."""
    assert output.prompt_token_ids is not None
    return _flat(output.prompt_logprobs, len(output.prompt_token_ids) - 1)


def _flat(log_probs: object, tokens: int) -> FloatArray:
    """The numbers of a `FlatLogprobs`: with `logprobs=0` one per token, the token's own."""
    if tokens == 0 and log_probs is None:
        return np.zeros(0, dtype=np.float32)
    assert isinstance(log_probs, FlatLogprobs), f"log-probs of type {type(log_probs)}"
    values = np.asarray(log_probs.logprobs, dtype=np.float32)
    assert len(values) == tokens, f"{len(values)} log-probs for {tokens} tokens"
    return values
