"""Forward and backward of micro-batches through Megatron's pipeline schedules.

**Loss scaling, here once.** A micro-batch's loss is its share of the global batch's loss: a sum of
per-token values whose weights already hold the global denominator (`algos.reductions`). So losses
and gradients are to be summed over micro-batches, DP and CP ranks, and nobody may divide:
`calculate_per_token_loss` stops the schedule's division by the number of micro-batches and DDP's
division by the number of ranks, and `optimizer.finalize_gradients` drops the division by the token
count that Megatron puts in their place.

**Logits only where needed.** Of the positions, only those that predict response tokens get logits,
and of those only a chunk at a time: `ResponseHead` hands out the picked hidden states in place of
logits, and `algos.log_probs` multiplies them with the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from herl_megatron.algos.log_probs import LogitBuffer, token_log_probs
from herl_megatron.batching.context_parallel import ContextRank
from herl_megatron.batching.pack import MicroBatch, pack, unpack
from herl_megatron.batching.shards import Shard, length_multiple
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.megatron.model import packed_sequence_params
from herl_megatron.models.groups import Groups
from herl_megatron.types import FloatArray, TokenRow

Result = TypeVar("Result")
Evaluate = Callable[[MicroBatch, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Result]]
"""(micro-batch, log-probs `[tokens]`, entropy `[tokens]`) -> (loss to be summed, what to return).
The result must not share memory with the loss."""


class ResponseHead:
    """Turns a last chunk's output layer into one that returns hidden states, not logits.

    index: `[tokens]` int64, the positions wanted (`MicroBatch.logit_index`); set before each
        forward pass.
    weight: `[padded_vocab / tp, hidden]`, the output matrix of the last forward pass.
    """

    def __init__(self, chunk: GPTModel, groups: Groups) -> None:
        self.index: torch.Tensor | None = None
        self.weight: torch.Tensor | None = None
        self._layer = chunk.output_layer
        self._tp_group = groups.tp.group
        self._gather = chunk.config.sequence_parallel
        # GPTModel calls the layer by itself. It keeps its parameter, so names, checkpoints and
        # gradient buffers stay Megatron's.
        self._layer.forward = self._pick

    def _pick(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, None]:
        """`[seq / tp or seq, batch, hidden]` -> `[tokens, 1, hidden]`, and no bias.

        Each TP rank's gradient comes from its part of the vocabulary; it is summed over TP here.
        """
        self.weight = self._layer.weight if weight is None else weight
        assert self.index is not None, "a forward pass without positions"
        if self._gather:
            hidden = gather_from_sequence_parallel_region(hidden, group=self._tp_group)
        picked = hidden.flatten(0, 1).index_select(0, self.index)[:, None]
        if not self._gather:
            picked = copy_to_tensor_model_parallel_region(picked, group=self._tp_group)
        return picked, None


class PipelineRunner:
    """Runs micro-batches through this rank's chunks and evaluates log-probs on the last stage.

    Args:
        chunks: the model's chunks on this rank, without or with a data-parallel wrapper.
        models: the same chunks, unwrapped.
        vocab_size: real vocabulary.
        fp32_logits: see `ModelConfig.fp32_output_layer`.
        megatron: layout and chunking of log-probs.
        groups: as `init_parallel` returned them.
    """

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        *,
        models: Sequence[GPTModel],
        vocab_size: int,
        fp32_logits: bool,
        megatron: MegatronConfig,
        groups: Groups,
    ) -> None:
        self._chunks = list(chunks)
        self._vocab_size = vocab_size
        self._fp32_logits = fp32_logits
        self._megatron = megatron
        self._groups = groups
        self._schedule = get_forward_backward_func()
        self._head = ResponseHead(models[-1], groups) if groups.holds_output else None

    def pack(self, shard: Shard[TokenRow]) -> list[MicroBatch]:
        """This rank's tensors of all micro-batches of `shard`, in its order."""
        context = ContextRank(rank=self._groups.cp.rank, size=self._groups.cp.size)
        return [
            pack(
                shard,
                rows,
                packing=self._megatron.packing,
                multiple=length_multiple(self._megatron),
                device=self._groups.torch_device,
                context=context,
            )
            for rows in shard.micro_batches
        ]

    def accumulate_gradients(
        self,
        micro_batches: Sequence[MicroBatch],
        evaluate: Evaluate[Result],
        *,
        temperature: float,
    ) -> list[Result]:
        """Add the gradient of the summed losses to what is there, then sum it over ranks.

        temperature: divides the logits before log-probs and entropy.

        Returns the results per micro-batch on the last stage, elsewhere nothing.
        """
        return self._run(micro_batches, evaluate, temperature=temperature, forward_only=False)

    @torch.no_grad()
    def response_log_probs(
        self, shard: Shard[TokenRow], *, temperature: float
    ) -> list[FloatArray] | None:
        """Log-probs of each row's response tokens, `[response]`, in the shard's row order, of the
        distribution with logits divided by `temperature`.

        None on every rank but TP rank 0 and CP rank 0 of the last pipeline stage.
        """
        groups = self._groups

        def evaluate(
            batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return log_probs.sum(), batch.whole(log_probs)

        batches = self.pack(shard)
        results = self._run(batches, evaluate, temperature=temperature, forward_only=True)
        if groups.cp.size > 1:
            for values in results:  # each token is some rank's, and 0 on all others
                dist.all_reduce(values, group=groups.cp.group)
        if not (groups.holds_output and groups.tp.is_first and groups.cp.is_first):
            return None
        return [
            row
            for batch, values in zip(batches, results, strict=True)
            for row in unpack(batch, values)
        ]

    def _run(
        self,
        micro_batches: Sequence[MicroBatch],
        evaluate: Evaluate[Result],
        *,
        temperature: float,
        forward_only: bool,
    ) -> list[Result]:
        log_probs_of = partial(self._log_probs, temperature=temperature)

        def forward_step(
            batches: Iterator[MicroBatch], chunk: torch.nn.Module
        ) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(batches)
            return self._forward(chunk, batch), _loss_function(batch, evaluate, log_probs_of)

        results: list[Result] = self._schedule(
            forward_step_func=forward_step,
            data_iterator=[iter(micro_batches) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=len(micro_batches),
            seq_length=1,  # not read: stages tell each other their shapes
            micro_batch_size=1,  # not read
            forward_only=forward_only,
        )
        return results if self._head is not None else []

    def _forward(self, chunk: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Hidden states of the wanted positions, `[1, tokens, hidden]`, or for the next chunk."""
        if self._head is not None:
            self._head.index = batch.logit_index
        packed = None
        if batch.cu_seqlens is not None:
            packed = packed_sequence_params(batch.cu_seqlens)
        output: torch.Tensor = chunk(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None,
            packed_seq_params=packed,
        )
        return output

    def _log_probs(
        self, batch: MicroBatch, hidden: torch.Tensor, *, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._head is not None and self._head.weight is not None, "no output layer here"
        log_probs, entropy = token_log_probs(
            hidden.squeeze(0),
            self._head.weight,
            batch.targets,
            vocab_size=self._vocab_size,
            tp_group=self._groups.tp.group if self._groups.tp.size > 1 else None,
            temperature=temperature,
            buffer=LogitBuffer(self._megatron.log_prob_chunk_tokens, self._fp32_logits),
        )
        assert entropy is not None
        return log_probs, entropy


def _loss_function(
    batch: MicroBatch,
    evaluate: Evaluate[Result],
    log_probs_of: Callable[[MicroBatch, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Result]]:
    """The schedule's loss function: called with the last chunk's output only."""

    def loss_function(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Result]:
        log_probs, entropy = log_probs_of(batch, hidden)
        loss, result = evaluate(batch, log_probs, entropy)
        return loss, torch.zeros((), dtype=torch.int, device=loss.device), result

    return loss_function
