"""Section `rollout`: the engines and how first samples are drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herl_megatron.config.hooks import OptionValue
from herl_megatron.config.schema.base import (
    MOST_AT_ONCE,
    MOST_PROCESSES,
    MOST_ROWS,
    MOST_TOKENS,
    Numbers,
    Precision,
    Section,
    Speed,
)
from herl_megatron.types import SamplingSettings


class RolloutConfig(Section):
    """The vLLM engines and how first samples are drawn."""

    replicas: Speed[int] = Field(default=1, gt=0, le=MOST_PROCESSES)
    """Independent engines; a prompt always goes to the same one."""
    tensor_parallel: Speed[int] = Field(default=1, gt=0, le=MOST_PROCESSES)
    """GPUs of an engine (TP inside vLLM), each with a process of its own; processes on the CPU. An
    engine lives on one node."""
    group_size: Numbers[int] = Field(default=8, gt=1, le=MOST_AT_ONCE)
    """Rollouts per prompt, G."""
    temperature: Numbers[float] = Field(default=1.0, ge=0)
    """Sampling temperature of first samples; the policy that is trained is the one at this
    temperature, so all log-probs of the loss have it too. 0 (greedy) is for evaluation only."""
    top_p: Numbers[float] = Field(default=1.0, gt=0, le=1)
    """Nucleus truncation of first samples."""
    top_k: Numbers[int] = Field(default=-1, ge=-1, le=MOST_TOKENS)
    """Top-k truncation of first samples; -1 (or 0) keeps every token."""
    max_response_tokens: Numbers[int] = Field(default=1024, gt=0, le=MOST_TOKENS)
    """Longest response in tokens, for first samples and revisions; of several turns all together,
    with what is told between them."""
    dtype: Numbers[Precision] = "bf16"
    """Weights and activations of the engine."""
    quantization: Numbers[Literal["fp8"] | None] = None
    """`fp8`: matrices in FP8 with a scale per output channel, activations with one per token; every
    weight sync quantises anew. Slow on the CPU. What is sampled is then another distribution than
    the trainer's, so `algorithm.mismatch_weight` is needed."""
    kv_cache_bytes: Speed[int] = Field(default=1 << 30, gt=0)
    """KV cache in bytes of each process of an engine (CPU); on GPU see `gpu_memory_utilization`."""
    gpu_memory_utilization: Speed[float] = Field(default=0.5, gt=0, le=1)
    """Share of GPU memory for weights and KV cache of a colocated engine."""
    sleep: Speed[Literal[0, 1, 2]] = 1
    """What the engines do while the trainer learns: stay as they are (0), or free the GPU's memory,
    the weights kept on the host (1) or dropped until the next weight sync (2). On the CPU nothing
    is freed; in `mode: one_step_off` the engines sample meanwhile and never sleep."""
    max_num_seqs: Speed[int] = Field(default=128, gt=0, le=MOST_AT_ONCE)
    """Sequences decoded together in one engine."""
    timeout_s: Speed[float] = Field(default=3600, gt=0)
    """Longest wait for one group, engine restarts included, before the run stops and says which
    engine is too slow."""
    stall_timeout_s: Speed[float] = Field(default=600, gt=0)
    """An engine that finishes no step (of all its sequences together) and no bucket of weights for
    this long hangs: it is killed and started anew."""
    max_engine_restarts: Speed[int] = Field(default=3, ge=0, le=MOST_ROWS)
    """Engines of one run (counted anew after a resume) that may die or hang: each is started anew
    with the trainer's current weights and its open requests are sent again, which in `mode: sync`
    changes no number of the run. 0 ends the run at the first."""
    streamed: Speed[bool] = True
    """Score and revise each group as soon as it is complete; false puts a barrier after each
    phase (the baseline schedule)."""
    mode: Numbers[Literal["sync", "partial", "one_step_off"]] = "sync"
    """When the rollouts of a step are drawn (`rollout.modes`): all of them with the step's own
    weights; with more prompts than are needed, the unfinished responses going on in the next step
    under its weights; or with the weights of the step before, while the trainer learns."""
    oversample: Numbers[float] = Field(default=0.25, ge=0, le=1)
    """`partial`: prompts in flight beyond `train.prompts_per_step`, as a share of it."""
    max_staleness: Numbers[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """`partial`: a group is carried on until its first weights are this many versions old; the
    step that makes it so waits for it, so that nothing is thrown away."""

    function: Numbers[str] = ""
    """`module:function`, an async function of your own that draws a response in several turns
    (docs/extending_methods.md); empty: a response is what follows the prompt. Not with `mode:
    partial`, nor in `herl improve`."""
    function_options: Numbers[dict[str, OptionValue]] = {}
    """Options of that function, by name."""

    @property
    def truncated(self) -> str:
        """Which settings take tokens out of first samples' distribution; "" for none. The trainer
        follows the temperature, but not these."""
        plain = {"top_p": 1.0, "top_k": -1}
        values = self.model_dump(include=set(plain))
        return ", ".join(
            f"rollout.{key} is {values[key]}"
            for key, value in plain.items()
            if values[key] != value
        )

    def sampling(self) -> SamplingSettings:
        """First samples' settings as the engine takes them."""
        return SamplingSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_response_tokens,
        )
