"""The frozen reference model of the KL term; built only when `algorithm.kl_coef` is not 0.

Its weights are those that the run started from, also after a resume. `megatron.reference` says
where they are: `resident` in modules of their own, or on the `host`, in which case they change
places with the policy's for each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from herl_megatron.batching.shards import Shard
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.device import copy_to_host
from herl_megatron.megatron.forward_step import PipelineRunner
from herl_megatron.megatron.write_gate import WriteGate
from herl_megatron.models.groups import Groups
from herl_megatron.types import FloatArray, TokenRow


class Reference(Protocol):
    """What the actor asks of a reference."""

    def compute_log_probs(
        self, shard: Shard[TokenRow], *, temperature: float
    ) -> list[FloatArray] | None:
        """Log-probs of the shard's response tokens; see `PipelineRunner.response_log_probs`."""
        ...


class ReferenceModel:
    """A model in the policy's layout, without gradients or optimizer.

    Args:
        chunks: this rank's chunks, weights loaded; nobody else may change them.
        vocab_size: real vocabulary.
        fp32_logits: see `ModelConfig.fp32_output_layer`.
        megatron: layout, token budget is the policy's.
        groups: as `init_parallel` returned them.
    """

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        *,
        vocab_size: int,
        fp32_logits: bool,
        megatron: MegatronConfig,
        groups: Groups,
    ) -> None:
        for chunk in chunks:
            chunk.requires_grad_(False)
        self._runner = PipelineRunner(
            chunks,
            models=chunks,
            vocab_size=vocab_size,
            fp32_logits=fp32_logits,
            megatron=megatron,
            groups=groups,
        )

    def compute_log_probs(
        self, shard: Shard[TokenRow], *, temperature: float
    ) -> list[FloatArray] | None:
        """See `Reference.compute_log_probs`."""
        return self._runner.response_log_probs(shard, temperature=temperature)


class HostWeights:
    """A copy in host memory of a model's weights as they are now.

    The device holds one model and, while `in_place` begins and ends, the largest parameter once
    more; the host holds one model per rank, page-locked where there is a GPU.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        self._parameters = list({id(p): p for chunk in chunks for p in chunk.parameters()}.values())
        self._host = [copy_to_host(parameter.detach()) for parameter in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts the modules hold the copy and the host holds theirs, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, host in zip(self._parameters, self._host, strict=True):
            # All three are in the order of the device's stream, so none waits for the host.
            arriving = host.to(parameter.device, copy=True, non_blocking=True)
            host.copy_(parameter, non_blocking=True)
            parameter.copy_(arriving)


class HostReference:
    """A reference in the policy's own modules.

    Megatron has a pass quantise weights anew under FP8, so nothing of the one model is left over in
    the other's pass; only `megatron.fp8: delayed` keeps more in the modules and is refused.

    Args:
        weights: taken from the policy's chunks before its first optimizer step.
        runner: the policy's.
        gate: the policy's; the weights may not change places while they are copied.
    """

    def __init__(self, weights: HostWeights, runner: PipelineRunner, gate: WriteGate) -> None:
        self._weights = weights
        self._runner = runner
        self._gate = gate

    def compute_log_probs(
        self, shard: Shard[TokenRow], *, temperature: float
    ) -> list[FloatArray] | None:
        """See `Reference.compute_log_probs`."""
        self._gate.wait()
        with self._weights.in_place():
            return self._runner.response_log_probs(shard, temperature=temperature)
