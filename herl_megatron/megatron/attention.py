"""Causal core attention without Transformer Engine, for padded and for packed rows.

Megatron's own local attention builds the whole `[batch, heads, seq, seq]` score matrix, refuses
packed rows and context parallelism (CP) and drops the mask when a window is set. This one calls
PyTorch's fused attention.

Under CP a rank holds two chunks of every row (`batching.context_parallel`). It gathers the key and
value of all ranks, whose gradients go back by reduce-scatter, and attends with each of its chunks
to the tokens up to that chunk's end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from herl_megatron.batching.context_parallel import ContextRank


class CausalAttention(MegatronModule):  # type: ignore[misc]  # Megatron-Core has no types
    """Softmax(QK^T / sqrt(d)) V where a token sees itself and earlier tokens of its own row.

    Padded rows `[seq, batch, heads, dim]` must be padded on the right: then no real token can
    see padding and no mask is needed. Packed rows `[tokens, heads, dim]` are attended to one by
    one, so no `[tokens, tokens]` mask exists. Key and value may have fewer heads. Under CP, `seq`
    and `tokens` are what this rank holds; `cu_seqlens` has the borders of the whole rows.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config)
        assert attn_mask_type is AttnMaskType.causal, f"attention is causal, got {attn_mask_type}"
        assert config.attention_dropout == 0.0, "attention dropout is not implemented"
        assert pg_collection is not None, "attention was built without its process groups"
        self.softmax_scale = softmax_scale
        windowed = is_layer_window_attention(
            config.window_size, config.window_attn_skip_freq, layer_number
        )
        self.window = config.window_size[0] + 1 if windowed else None
        self._group = pg_collection.cp
        self._context = ContextRank(rank=self._group.rank(), size=self._group.size())

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """`[seq, batch, heads * dim]`, or `[tokens, heads * dim]` for packed rows."""
        assert attention_mask is None, "pass attention_mask=None and pad rows on the right"
        key, value = self._gather(key), self._gather(value)
        if packed_seq_params is None:
            return self._attend_rows(query, key, value).flatten(2)
        cu_seqlens = packed_seq_params.cu_seqlens_q_padded
        if cu_seqlens is None:
            cu_seqlens = packed_seq_params.cu_seqlens_q
        lengths = (cu_seqlens.diff() // self._context.size).tolist()
        split = zip(
            query[:, None].split(lengths),
            key[:, :, None].split(lengths, dim=1),
            value[:, :, None].split(lengths, dim=1),
            strict=True,
        )
        return torch.cat([self._attend_rows(*row).flatten(1) for row in split])

    def _gather(self, held: torch.Tensor) -> torch.Tensor:
        """`[seq, ...]` of every CP rank: `[cp, seq, ...]`."""
        if self._context.size > 1:
            held = gather_from_sequence_parallel_region(held.contiguous(), group=self._group)
        by_rank: torch.Tensor = held.unflatten(0, (self._context.size, -1))
        return by_rank

    def _attend_rows(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Rows of one length. `q [seq, batch, heads, dim]`, the result likewise; `k` and `v` are
        `[cp, seq, batch, heads, dim]`."""
        if self._context.size == 1:
            return self._attend(q, k[0], v[0])
        chunk = q.shape[0] // 2
        k, v = _in_order(k), _in_order(v)
        parts = [
            self._attend(part, k[: number * chunk + chunk], v[: number * chunk + chunk])
            for part, number in zip(q.split(chunk), self._context.chunks, strict=True)
        ]
        return torch.cat(parts)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """All arguments and the result are `[seq, batch, heads, dim]`; the queries are those of the
        last tokens that `k` and `v` cover."""
        q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))
        queries, keys = q.shape[2], k.shape[2]
        mask = None
        if queries < keys or (self.window is not None and self.window < keys):
            ones = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
            mask = ones.tril(keys - queries)
            if self.window is not None:
                mask &= ones.triu(keys - queries + 1 - self.window)
        attended = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=self.softmax_scale, enable_gqa=True
        )
        return attended.permute(2, 0, 1, 3)


def _in_order(gathered: torch.Tensor) -> torch.Tensor:
    """`[cp, seq, ...]` in the order held -> whole rows `[cp * seq, ...]` from first to last token:
    the ranks' early chunks, then their late ones backwards."""
    early, late = gathered.chunk(2, dim=1)
    return torch.cat([early.flatten(0, 1), late.flip(0).flatten(0, 1)])
