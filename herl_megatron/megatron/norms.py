"""RMSNorm for the layer spec without Transformer Engine, sequence parallelism included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm over the last dimension, `[..., hidden]`.

    Tokens are normalised one by one, so a sharded sequence needs no communication forward. The
    weight's gradient is then a sum over local tokens: `sequence_parallel` on the weight makes
    Megatron's `finalize_model_grads` add it up over TP. (Without the mark the gradient is wrong
    in silence. Query and key norms see all tokens but local heads; Megatron adds those up by
    name.)

    With `layernorm_zero_centered_gamma` it multiplies by 1 + weight, both in fp32, and rounds once.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self._zero_centered = config.layernorm_zero_centered_gamma
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x [..., hidden]`, normalised; the same shape and dtype."""
        if not self._zero_centered:
            return super().forward(x)
        scale = 1 + self.weight.float()
        return F.rms_norm(x.float(), scale.shape, scale, self.eps).to(x.dtype)
