"""How evenly the routers of a mixture of experts spread the tokens of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.moe.router import Router

from herl_megatron.models.architecture import Experts


class ExpertLoad:
    """Counts the tokens that each expert is given, by a hook on every router of this rank.

    Every token that is computed counts, padding and dummy rows included; under full recomputation
    every one twice, which changes no share.
    """

    def __init__(
        self, chunks: Sequence[GPTModel], experts: Experts, *, device: torch.device
    ) -> None:
        self._has_experts = torch.tensor(experts.layers, device=device)
        self._counts = torch.zeros(
            len(experts.layers), experts.count, dtype=torch.float64, device=device
        )
        for chunk in chunks:
            for module in chunk.modules():
                if isinstance(module, Router):
                    module.register_forward_hook(self._count)

    def reset(self) -> None:
        """Forget what was counted, at the start of a step."""
        self._counts.zero_()

    def metrics(self) -> dict[str, float]:
        """Numbers since `reset` over all ranks, collective over the world:

        - `expert_load_max`: tokens of the busiest expert over the mean of its layer's, the largest
          of all layers; 1 is even, `experts / top_k` is the worst;
        - `experts_idle`: share of the experts of all layers that no token was given to.
        """
        dist.all_reduce(self._counts)  # TP, DP and PP ranks have seen different tokens or layers
        counts = self._counts[self._has_experts]
        relative = counts / counts.mean(dim=1, keepdim=True)
        return {
            "expert_load_max": relative.max().item(),
            "experts_idle": (counts == 0).double().mean().item(),
        }

    @torch.no_grad()
    def _count(self, router: Router, _: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        _, routing_map = output  # [tokens, experts], true where a token is given to an expert
        assert router.layer_number is not None, "a router without a layer"
        self._counts[router.layer_number - 1] += routing_map.sum(0)
