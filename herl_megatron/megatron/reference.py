"""The frozen reference model of the KL term; built only when `algorithm.kl_coef` is not 0."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core.models.gpt.gpt_model import GPTModel

from herl_megatron.batching.schedule import Shard
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.megatron.forward_step import PipelineRunner
from herl_megatron.megatron.groups import Groups
from herl_megatron.types import FloatArray


class ReferenceModel:
    """A model in the policy's layout, without gradients or optimizer.

    Args:
        chunks: this rank's chunks, weights loaded; nobody else may change them.
        vocab_size: real vocabulary.
        megatron: layout, token budget is the policy's.
        groups: as `init_parallel` returned them.
    """

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        *,
        vocab_size: int,
        megatron: MegatronConfig,
        groups: Groups,
    ) -> None:
        for chunk in chunks:
            chunk.requires_grad_(False)
        self._runner = PipelineRunner(
            chunks, models=chunks, vocab_size=vocab_size, megatron=megatron, groups=groups
        )

    def compute_log_probs(self, shard: Shard, *, temperature: float) -> list[FloatArray] | None:
        """Log-probs of the shard's response tokens; see `PipelineRunner.response_log_probs`."""
        return self._runner.response_log_probs(shard, temperature=temperature)
