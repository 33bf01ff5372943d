"""Section `megatron`: the trainer's layout, precision and memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herl_megatron.config.schema.base import (
    MOST_AT_ONCE,
    MOST_TOKENS,
    Nothing,
    Numbers,
    Precision,
    Section,
    Speed,
)
from herl_megatron.fp8 import RecipeName


class MegatronConfig(Section):
    """Parallel layout, precision and memory of the actor."""

    tensor_parallel: Speed[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """TP: ranks that share every matrix."""
    pipeline_parallel: Speed[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """PP: ranks that share the layers. Where those do not divide, the stages just before the last
    hold one more each: 94 layers on 4 stages are 23, 24, 24 and 23."""
    virtual_pipeline: Speed[int | None] = Field(default=None, le=MOST_AT_ONCE)
    """Model chunks per pipeline rank (interleaved 1F1B); none for plain 1F1B."""
    context_parallel: Speed[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """CP: ranks that share a sequence; rows are padded to a multiple of 2 * CP."""
    expert_parallel: Speed[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """EP: ranks that share the experts."""
    expert_tensor_parallel: Speed[int | None] = Field(default=None, gt=0, le=MOST_AT_ONCE)
    """ETP: ranks that share every matrix of an expert; none takes `tensor_parallel`. ETP * EP
    divides a pipeline stage's TP * CP * DP ranks, whatever each of those is. 1 keeps experts whole,
    which are narrow already, and lets EP reach over the TP ranks."""
    data_parallel: Speed[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """DP: replicas of the model; TP * PP * CP * DP ranks are started."""
    sequence_parallel: Speed[bool] = False
    """Split activations of norms and residuals over TP."""
    precision: Numbers[Precision] = "bf16"
    """Compute precision; bf16 keeps fp32 main weights in the optimizer."""
    fp8: Numbers[RecipeName | None] = None
    """FP8 recipe (Transformer Engine, needs a capable GPU; see `fp8`); none trains in
    `precision`, which FP8 needs to be bf16."""
    fp8_bf16_layers: Numbers[int] = Field(default=0, ge=0, le=MOST_AT_ONCE)
    """Layers at each end of the model that compute in bf16 under FP8 (not with `delayed`)."""
    fp8_min_hidden: Nothing[int] = Field(default=2048, ge=0)
    """FP8 is refused for a model whose hidden size is below this: published H100 runs lose time at
    768 and 1024, gain 1.05 to 1.3 times at 1600 and 1664, 1.2 to 1.4 times at 4096 and more. Lower
    it where you measured a gain (`tools/bench/bench_gpu_step.py`)."""
    distributed_optimizer: Numbers[bool] = True
    """Shard optimizer state over DP."""
    recompute: Speed[Literal["none", "selective", "full"]] = "none"
    """Activation recompute: nothing, core attention only, or every layer."""
    micro_batch_tokens: Speed[int] = Field(default=8192, gt=0, le=MOST_TOKENS)
    """Token budget of one micro-batch, padding included, on all its CP ranks together."""
    packing: Speed[bool] = False
    """True packs rows into one sequence (THD); false pads rows of similar length."""
    timeout_s: Speed[float] = Field(default=1800, gt=0)
    """Longest wait of one collective or one trainer call."""
    reference: Speed[Literal["resident", "host"]] = "resident"
    """Where the reference model's weights are (only with `algorithm.kl_coef`): beside the policy's,
    or in host memory, changing places with the policy's for each of its passes: one model less on
    the device, two copies of the weights' bytes each way per step."""
    log_prob_chunk_tokens: Speed[int] = Field(default=512, gt=0, le=MOST_TOKENS)
    """Tokens that have logits at a time. A micro-batch with more response tokens computes them once
    more in the backward pass instead of keeping them."""

    @property
    def world_size(self) -> int:
        """Trainer ranks."""
        return (
            self.tensor_parallel
            * self.pipeline_parallel
            * self.context_parallel
            * self.data_parallel
        )

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor_parallel * self.context_parallel * self.data_parallel

    @property
    def etp(self) -> int:
        """`expert_tensor_parallel`, where that is none `tensor_parallel`."""
        return self.expert_tensor_parallel or self.tensor_parallel
