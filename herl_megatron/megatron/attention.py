"""Causal core attention without Transformer Engine, for padded and for packed rows.

Megatron's own local attention builds the whole `[batch, heads, seq, seq]` score matrix, refuses
packed rows and drops the mask when a window is set. This one calls PyTorch's fused attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class CausalAttention(MegatronModule):
    """Softmax(QK^T / sqrt(d)) V where a token sees itself and earlier tokens of its own row.

    Padded rows `[seq, batch, heads, dim]` must be padded on the right: then no real token can
    see padding and no mask is needed. Packed rows `[tokens, heads, dim]` are attended to one by
    one, so no `[tokens, tokens]` mask exists. Key and value may have fewer heads.
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
        assert config.context_parallel_size == 1, "context parallelism needs Transformer Engine"
        assert config.attention_dropout == 0.0, "attention dropout is not implemented"
        self.softmax_scale = softmax_scale
        self.window = None if config.window_size is None else config.window_size[0] + 1

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
        if packed_seq_params is None:
            q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
            return self._attend(q, k, v).permute(2, 0, 1, 3).flatten(2)
        cu_seqlens = packed_seq_params.cu_seqlens_q_padded
        if cu_seqlens is None:
            cu_seqlens = packed_seq_params.cu_seqlens_q
        lengths = cu_seqlens.diff().tolist()
        rows = [
            self._attend(*(t.transpose(0, 1)[None] for t in row))[0].transpose(0, 1).flatten(1)
            for row in zip(*(t.split(lengths) for t in (query, key, value)), strict=True)
        ]
        return torch.cat(rows)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """All arguments and the result are `[batch, heads, seq, dim]`."""
        seq = q.shape[2]
        mask = None
        if self.window is not None and self.window < seq:
            ones = torch.ones(seq, seq, dtype=torch.bool, device=q.device)
            mask = ones.tril() & ones.triu(1 - self.window)
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=self.softmax_scale, enable_gqa=True
        )
