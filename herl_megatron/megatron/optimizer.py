"""Megatron's optimizer around the model chunks: gradients, clipping, Adam, learning rate.

Adam with decoupled weight decay; biases and norm weights (all one-dimensional parameters) are not
decayed. With bf16 weights the optimizer keeps fp32 main weights, which start from the values before
they were rounded to bf16 (`set_main_weight`), and gradients are summed in fp32.
Transformer Engine's or Apex's fused Adam is used where installed, torch's AdamW elsewhere.

Gradients of all DP and CP ranks are SUMMED, not averaged: `megatron.forward_step` says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as _finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from herl_megatron.config.schema import MegatronConfig, OptimizerConfig
from herl_megatron.megatron.write_gate import WriteGate
from herl_megatron.models.dtypes import compute_dtype


def learning_rate(config: OptimizerConfig, *, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (the first is 0) in a run of `total_steps`.

    Linear warm-up reaches `lr` in the last warm-up step; what follows decays from `lr` towards
    `min_lr`, which would be reached one step after the run's last.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    done = min(done, 1.0)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left


class Optimizer:
    """Owns gradients and weights of this rank's chunks.

    Per optimizer step: `zero_grad`, forward and backward through `chunks`, `gradient_norm` (which
    the caller checks), `step`.

    Attributes:
        chunks: the chunks wrapped for data parallelism, to be given to the schedule.
        steps_done: optimizer steps so far.
        megatron: Megatron's own optimizer, for checkpoints.
        gate: where every change of weights or optimizer state waits for a copy of them.
    """

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        *,
        config: OptimizerConfig,
        megatron: MegatronConfig,
        total_steps: int,
    ) -> None:
        self._config = config
        self._total_steps = total_steps
        self.steps_done = 0
        self.gate = WriteGate()
        model_config = chunks[0].config
        # Before wrapping, which reads it: neither DDP nor the schedule divides anything.
        model_config.calculate_per_token_loss = True
        model_config.finalize_model_grads_func = finalize_gradients
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=megatron.distributed_optimizer,
            overlap_grad_reduce=False,
        )
        self.chunks = [
            DistributedDataParallel(model_config, ddp_config, chunk, disable_bucketing=place > 0)
            for place, chunk in enumerate(chunks)
        ]
        dtype = compute_dtype(megatron)
        self.megatron = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=config.lr,
                min_lr=config.min_lr,
                weight_decay=config.weight_decay,
                decoupled_weight_decay=True,
                adam_beta1=config.beta1,
                adam_beta2=config.beta2,
                adam_eps=config.eps,
                clip_grad=config.clip_grad,
                bf16=dtype is torch.bfloat16,
                params_dtype=dtype,
                use_distributed_optimizer=megatron.distributed_optimizer,
            ),
            self.chunks,
        )

    @torch.no_grad()
    def set_main_weight(self, parameter: torch.nn.Parameter, values: torch.Tensor) -> None:
        """Set the fp32 main weight of `parameter`, or this rank's part of it, to `values`.

        Megatron starts main weights from the bf16 weights, so what bf16 rounds away has to be
        brought back. A parameter in fp32 is its own main weight and stays as it is.
        """
        assert values.shape == parameter.shape, f"{values.shape} for {parameter.shape}"
        if parameter.dtype is torch.float32:
            return
        main: torch.Tensor | None = parameter.main_param  # type: ignore[attr-defined]
        if main is None:
            return  # other DP ranks hold all of it
        self.gate.wait()
        flat = values.flatten()
        for optimizer in self.megatron.chained_optimizers:
            if isinstance(optimizer, DistributedOptimizer):
                if parameter not in optimizer.model_param_gbuf_map:
                    continue
                part = optimizer._get_model_param_range_map(parameter)["param"]
                flat = flat[part.start : part.end]
        main.copy_(flat.view_as(main))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.megatron.zero_grad()

    def gradient_norm(self) -> float:
        """Norm of the whole model's gradient, the same on every rank, before clipping.

        Not finite when any gradient anywhere is not.
        """
        self.megatron.prepare_grads()
        return float(self.megatron.get_grad_norm())

    def step(self, gradient_norm: float, *, schedule_step: int | None = None) -> float:
        """Clip by `gradient_norm` (as `gradient_norm()` returned it) and update the weights.

        schedule_step: place in the learning rate's schedule; none means `steps_done`, which is
            right where every planned optimizer step is taken.

        Returns the learning rate that was used.
        """
        self.gate.wait()
        place = self.steps_done if schedule_step is None else schedule_step
        lr = learning_rate(self._config, step=place, total_steps=self._total_steps)
        for group in self.megatron.param_groups:
            group["lr"] = lr
            # Megatron marks what is not decayed but leaves it to its scheduler to act on that.
            group["weight_decay"] = self._config.weight_decay * group["wd_mult"]
        if self._config.clip_grad > 0:
            for optimizer in self.megatron.chained_optimizers:
                # A stage may hold no parameter of a kind (dense or expert).
                if parameters := optimizer.get_parameters():
                    clip_grad_by_total_norm_fp32(
                        parameters, max_norm=self._config.clip_grad, total_norm=gradient_norm
                    )
        self.megatron.step_with_ready_grads()
        self.steps_done += 1
        return lr

    def tensors(self) -> list[torch.Tensor]:
        """Weights, main weights and moments: all that changes only after `gate.wait()`."""
        found: list[torch.Tensor] = [p for chunk in self.chunks for p in chunk.parameters()]
        for chained in self.megatron.chained_optimizers:
            for group in chained.optimizer.param_groups:
                for parameter in group["params"]:
                    found.append(parameter)
                    state = chained.optimizer.state.get(parameter, {})
                    found += [value for value in state.values() if torch.is_tensor(value)]
        return found

    @contextmanager
    def local_gradients(self) -> Iterator[None]:
        """While this lasts the schedule leaves each rank with its own gradients, not summed."""
        config = self.chunks[0].config
        config.finalize_model_grads_func = None
        try:
            yield
        finally:
            config.finalize_model_grads_func = finalize_gradients

    def has_finite_gradients(self) -> bool:
        """Whether the gradients accumulated on this rank are finite."""
        return all(
            bool(parameter.main_grad.isfinite().all())
            for chunk in self.chunks
            for parameter in chunk.parameters()
        )


def finalize_gradients(chunks: list[Any], num_tokens: torch.Tensor | None, **groups: Any) -> None:
    """Sum gradients over DP and CP (and TP for norms under sequence parallelism, and the two copies
    of a tied embedding); the schedule's token count is not used, the loss is normalised already."""
    _finalize_model_grads(chunks, None, **groups)
