"""The policy on one trainer rank: log-probs, optimizer steps of RL, SFT and DPO.

Every rank of the layout calls the same method with its DP rank's `Shard`; the methods are
collective. Numbers come back from the last pipeline stage.

**Temperature.** The policy that is trained is the one that samples: logits divided by
`rollout.temperature`. Its current, old and reference log-probs and its entropy are all of that
distribution, also on revision rows: their rho = pi / mu has the same trained policy pi, whatever
temperature drew the revision, which only mu knows. Truncation (`top_p`, `top_k`) is not followed.
SFT fits the plain distribution, temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel

from herl_megatron.algos.loss_inputs import LossInputs, TokenRows
from herl_megatron.algos.loss_metrics import MAXIMA
from herl_megatron.algos.losses import LossOutput, policy_loss, sft_loss
from herl_megatron.algos.losses_dpo import coefficient_loss
from herl_megatron.algos.objective import PolicyObjective
from herl_megatron.algos.reductions import LossAggregation, token_weights
from herl_megatron.batching.pack import MicroBatch
from herl_megatron.batching.shards import Shard
from herl_megatron.batching.token_values import (
    PolicyTokens,
    block_means,
    policy_tokens,
    token_coefficients,
)
from herl_megatron.config.reference_compat import is_resolved
from herl_megatron.config.schema import (
    MegatronConfig,
    ModelConfig,
    OptimizerConfig,
)
from herl_megatron.errors import RunError
from herl_megatron.megatron.expert_load import ExpertLoad
from herl_megatron.megatron.forward_step import Evaluate, PipelineRunner
from herl_megatron.megatron.load_weights import (
    Write,
    init_random_weights,
    load_hf_weights,
    load_megatron_weights,
)
from herl_megatron.megatron.model import build_model
from herl_megatron.megatron.optimizer import Optimizer
from herl_megatron.megatron.reference import (
    HostReference,
    HostWeights,
    Reference,
    ReferenceModel,
)
from herl_megatron.megatron.soundness import (
    LARGEST_SANE,
    WeightReport,
    largest_weight,
    merge_reports,
    weight_report,
)
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.dtypes import compute_dtype
from herl_megatron.models.groups import Groups
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.local_parameters import local_parameters
from herl_megatron.types import CoefficientRow, FloatArray, TokenRow, TrainRow

Sums = dict[str, torch.Tensor]
LossOf = Callable[[MicroBatch, torch.Tensor, torch.Tensor], LossOutput]
"""(micro-batch, log-probs, entropy) -> loss."""


class NonFiniteError(RunError):
    """A loss, a gradient or a weight is NaN, infinite or beyond what any model has.

    Raised on every rank; of a loss or gradient before the weights change, of a weight after the
    optimizer step that spoilt it and before anybody else gets it. The policy is lost where it is a
    weight, or the loss of every micro-batch; one bad row leaves it as it was.
    """


class MegatronActor:
    """Model, optimizer and (for a KL term) reference of one rank.

    Attributes:
        chunks: the GPTModel chunks of this rank, not wrapped.
        architecture: the model's `Architecture`, which names its Hugging Face tensors.
        optimizer: owner of gradients and weights.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        megatron: MegatronConfig,
        optimizer: OptimizerConfig,
        objective: PolicyObjective | None = None,
        total_optimizer_steps: int,
        seed: int,
        groups: Groups,
        architecture: Architecture | None = None,
    ) -> None:
        """Build the model on this rank and load its weights.

        architecture: of the folder `model.path`; read from there if it is not given.
        objective: of the policy's loss; None for an actor that only fits rows (SFT, DPO): it has
            no reference model, and its policy is the plain distribution.

        Raises:
            ValueError: the model or the layout is not supported, or weights are missing.
        """
        assert objective is None or is_resolved(objective.hindsight), "resolved by prepare"
        self._given_objective = objective
        kl_coef = objective.algorithm.kl_coef if objective is not None else 0.0
        self._groups = groups
        self._interleaved_stages = groups.pp.size if groups.vpp > 1 else 1
        self.architecture = architecture or read_architecture(model.path)

        def fill(chunks: Sequence[GPTModel], write: Write) -> None:
            if model.random_init:
                init_random_weights(chunks, self.architecture, groups, seed=seed, write=write)
            elif model.megatron_path:
                load_megatron_weights(
                    chunks, model.megatron_path, self.architecture, groups, write=write
                )
            else:
                load_hf_weights(chunks, model.path, self.architecture, groups, write=write)

        def load() -> list[GPTModel]:
            chunks = build_model(self.architecture, megatron, groups)
            fill(chunks, torch.Tensor.copy_)
            return chunks

        self.chunks = load()
        self._named = local_parameters(self.chunks, self.architecture, groups)
        on_host = kl_coef > 0 and megatron.reference == "host"
        start = HostWeights(self.chunks) if on_host else None
        self.optimizer = Optimizer(
            self.chunks, config=optimizer, megatron=megatron, total_steps=total_optimizer_steps
        )
        if compute_dtype(megatron) is not torch.float32:
            # Read again rather than kept: never more than one parameter twice in memory.
            fill(self.chunks, self.optimizer.set_main_weight)
        vocab_size = self.architecture.vocab_size
        self._runner = PipelineRunner(
            self.optimizer.chunks,
            models=self.chunks,
            vocab_size=vocab_size,
            fp32_logits=model.fp32_output_layer,
            megatron=megatron,
            groups=groups,
        )
        self._expert_load: ExpertLoad | None = None
        if experts := self.architecture.experts:
            self._expert_load = ExpertLoad(self.chunks, experts, device=groups.torch_device)
        self._reference: Reference | None = None
        if start is not None:
            self._reference = HostReference(start, self._runner, self.optimizer.gate)
        elif kl_coef:
            self._reference = ReferenceModel(
                load(),
                vocab_size=vocab_size,
                fp32_logits=model.fp32_output_layer,
                megatron=megatron,
                groups=groups,
            )

    @property
    def _objective(self) -> PolicyObjective:
        assert self._given_objective is not None, "an actor without a policy's objective"
        return self._given_objective

    def compute_log_probs(
        self, shard: Shard[TokenRow], *, temperature: float | None = None
    ) -> list[FloatArray] | None:
        """Log-probs of the shard's response tokens under the current weights.

        temperature: none is the trained policy's; 1 gives the model's plain log-probs.

        Returns `[response]` per row of the shard on TP and CP rank 0 of the last stage, else None.
        """
        if temperature is None:
            given = self._given_objective
            temperature = given.temperature if given is not None else 1.0
        return self._runner.response_log_probs(shard, temperature=temperature)

    def compute_ref_log_probs(self, shard: Shard[TokenRow]) -> list[FloatArray] | None:
        """The same under the reference weights; only with `algorithm.kl_coef` above 0."""
        assert self._reference is not None, "there is no reference model: algorithm.kl_coef is 0"
        return self._reference.compute_log_probs(shard, temperature=self._objective.temperature)

    def weight_report(self) -> WeightReport:
        """What this rank's weights are like now; not collective."""
        return weight_report(self._named)

    def train_step(
        self, shard: Shard[TrainRow], *, schedule_step: int | None = None
    ) -> dict[str, float]:
        """One optimizer step of the HeRL loss, with the learning rate of `schedule_step`.

        Where the rows have no old log-probs the current policy is the old one, which is exact in
        the first optimizer step after sampling.

        Returns numbers over the global batch (parts of `loss` that add up to it, `entropy`,
        `grad_norm` before clipping, `lr`, sums and their counts) for `algos.loss_metrics.combine`,
        with experts those of `ExpertLoad`; on a stage that is not the last one only `grad_norm`,
        `lr` and the experts' numbers.

        Raises:
            NonFiniteError: with the prompt ids of the micro-batches that are to blame, weights and
                optimizer state being as before; or with the first parameter that the step spoilt.
        """

        objective = self._objective
        algorithm, hindsight = objective.algorithm, objective.hindsight

        def loss_of(
            batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> LossOutput:
            weights = _weights(batch, shard, algorithm.aggregation)
            inputs = self._loss_inputs(batch, tokens[batch], log_probs, entropy, weights)
            return policy_loss(
                inputs, algorithm=algorithm, hindsight=hindsight, own=objective.own_loss
            )

        batches = self._runner.pack(shard)
        tokens = {batch: policy_tokens(shard, batch) for batch in batches}
        return self._step(
            shard, batches, loss_of, temperature=objective.temperature, schedule_step=schedule_step
        )

    def sft_step(self, shard: Shard[TokenRow]) -> dict[str, float]:
        """One optimizer step of the mean negative log-likelihood over all response tokens.

        Returns and raises as `train_step`.
        """

        def loss_of(
            batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> LossOutput:
            return sft_loss(log_probs, _weights(batch, shard, "token_mean"))

        batches = self._runner.pack(shard)
        return self._step(shard, batches, loss_of, temperature=1.0, schedule_step=None)

    def coefficient_step(self, shard: Shard[CoefficientRow]) -> dict[str, float]:
        """One optimizer step on minus the sum of each row's `coefficient` times the log-prob of its
        response, at temperature 1: what the slopes of a loss over whole responses turn into.

        Returns and raises as `train_step`; `loss` means nothing by itself.
        """

        def loss_of(
            batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> LossOutput:
            return coefficient_loss(log_probs, coefficients[batch])

        batches = self._runner.pack(shard)
        coefficients = {batch: token_coefficients(shard, batch) for batch in batches}
        return self._step(shard, batches, loss_of, temperature=1.0, schedule_step=None)

    def _loss_inputs(
        self,
        batch: MicroBatch,
        tokens: PolicyTokens,
        log_probs: torch.Tensor,
        entropy: torch.Tensor,
        weights: torch.Tensor,
    ) -> LossInputs:
        current = log_probs.detach()
        return LossInputs(
            log_probs=log_probs,
            entropy=entropy,
            old_log_probs=current if tokens.old_log_probs is None else tokens.old_log_probs,
            rollout_log_probs=tokens.rollout_log_probs,
            ref_log_probs=current if batch.is_dummy else tokens.ref_log_probs,
            advantages=tokens.advantages,
            off_policy=tokens.off_policy,
            weights=weights,
            rows=TokenRows(
                batch.token_row,
                batch.row_tokens,
                self._groups.cp.group if self._groups.cp.size > 1 else None,
            ),
        )

    def _step(
        self,
        shard: Shard[TokenRow],
        micro_batches: Sequence[MicroBatch],
        loss_of: LossOf,
        *,
        temperature: float,
        schedule_step: int | None,
    ) -> dict[str, float]:
        assert shard.loss_rows, "a step needs a row of weight above 0; the caller skips the others"

        def evaluate(
            batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> tuple[torch.Tensor, Sums]:
            output = loss_of(batch, log_probs, entropy)
            return output.loss, {**output.parts, **output.sums, **output.maxima}

        self.optimizer.zero_grad()
        if self._expert_load is not None:
            self._expert_load.reset()
        outputs = self._runner.accumulate_gradients(
            micro_batches, evaluate, temperature=temperature
        )
        bad_losses = [i for i, sums in enumerate(outputs) if not sums["loss"].isfinite()]
        self._stop_if_any("loss", bad_losses, shard)
        gradient_norm = self.optimizer.gradient_norm()
        if not math.isfinite(gradient_norm):
            bad_gradients = self._find_bad_gradients(
                micro_batches, evaluate, temperature=temperature
            )
            self._stop_if_any("gradient", bad_gradients, shard)
            raise NonFiniteError(f"gradient norm is {gradient_norm}, each micro-batch's is finite")
        lr = self.optimizer.step(gradient_norm, schedule_step=schedule_step)
        largest = self._largest_weight(gradient_norm=gradient_norm, lr=lr)
        metrics = {"grad_norm": gradient_norm, "lr": lr, "largest_weight": largest}
        if self._expert_load is not None:
            metrics |= self._expert_load.metrics()
        if outputs:
            metrics |= self._global_sums(outputs, shard, micro_batches)
        return metrics

    def _largest_weight(self, *, gradient_norm: float, lr: float) -> float:
        """The whole model's largest magnitude; NonFiniteError, on all ranks, where it is no
        model's."""
        largest = largest_weight(self._named.values()).to(self._groups.torch_device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)  # over all ranks
        if (found := float(largest)) <= LARGEST_SANE:
            return found
        reports: list[WeightReport | None] = [None] * self._groups.world_size
        dist.all_gather_object(reports, self.weight_report())
        problem = merge_reports([report for report in reports if report]).problem
        raise NonFiniteError(
            f"after optimizer step {self.optimizer.steps_done} (learning rate {lr:g}, gradient norm"
            f" {gradient_norm:g}) {problem}; these weights go neither to the engines nor into a"
            " checkpoint or an export. Likely causes: optimizer.lr is too high or its warm-up too"
            " short, optimizer.clip_grad is 0 or optimizer.eps too small, or the hardware failed",
            policy_lost=True,
        )

    def _find_bad_gradients(
        self,
        micro_batches: Sequence[MicroBatch],
        evaluate: Evaluate[Sums],
        *,
        temperature: float,
    ) -> list[int]:
        """Numbers of the micro-batches whose gradient on this rank is not finite: each is run
        again by itself. Only a step that is lost anyway pays for this."""
        bad = []
        with self.optimizer.local_gradients():
            for number, batch in enumerate(micro_batches):
                self.optimizer.zero_grad()
                # The interleaved schedule takes no fewer micro-batches than there are stages.
                self._runner.accumulate_gradients(
                    [batch] * self._interleaved_stages, evaluate, temperature=temperature
                )
                if not self.optimizer.has_finite_gradients():
                    bad.append(number)
        return bad

    def _stop_if_any(self, what: str, bad: Sequence[int], shard: Shard[TokenRow]) -> None:
        """Raise on all ranks if any rank names a micro-batch whose `what` is not finite."""
        flag = torch.tensor(float(bool(bad)), device=self._groups.torch_device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)  # over all ranks
        if not flag:
            return
        mine = [shard.rows[row].prompt_id for number in bad for row in shard.micro_batches[number]]
        whole = len(bad) == len(shard.micro_batches)
        every: list[Any] = [None] * self._groups.world_size
        dist.all_gather_object(every, (self._groups.dp.rank, whole, mine, self.weight_report()))
        named = dict.fromkeys(prompt for _, _, prompts, _ in every for prompt in prompts)
        report = merge_reports([report for *_, report in every])
        blamed = "other micro-batches are finite, so look at these rows first."
        in_all = {dp for dp, whole, *_ in every if whole} == set(range(self._groups.dp.size))
        if in_all:
            blamed = (
                "every micro-batch is, so it is the weights or the loss's settings rather than a"
                " row: is optimizer.lr too high?"
            )
        raise NonFiniteError(
            f"the {what} is NaN or infinite in micro-batches with rows of the prompts"
            f" {', '.join(named)}; {blamed} This optimizer step did not change the weights"
            f" ({report.problem or f'all finite, the largest {report.largest:.3g}'})",
            policy_lost=bool(report.problem) or (in_all and what == "loss"),
        )

    def _global_sums(
        self,
        outputs: Sequence[Sums],
        shard: Shard[TokenRow],
        micro_batches: Sequence[MicroBatch],
    ) -> dict[str, float]:
        """Add up over micro-batches, DP and CP ranks; of `MAXIMA` find the largest."""
        group = self._groups.dp_cp.group
        maxima = {
            name: torch.stack([out[name] for out in outputs]).amax()
            for name in MAXIMA
            if name in outputs[0]
        }
        for highest in maxima.values():
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        names = [name for name in outputs[0] if name not in maxima]
        per_batch = torch.stack([torch.stack([out[name] for name in names]) for out in outputs])
        padded = sum(batch.input_ids.numel() for batch in micro_batches)
        real = sum(row.tokens for row in shard.rows) if self._groups.cp.is_first else 0
        counts = per_batch.new_tensor([padded, real], dtype=torch.float64)
        totals = torch.cat([per_batch.double().sum(0), counts])
        dist.all_reduce(totals, group=group)
        values = dict(zip([*names, "padding_ratio", "row_tokens"], totals.tolist(), strict=True))
        return {
            **values,
            **{name: value.item() for name, value in maxima.items()},
            "tokens": float(shard.loss_tokens),
            "rows": float(shard.loss_rows),
            "micro_batches": float(len(micro_batches)),
        }


def _weights(
    batch: MicroBatch, shard: Shard[TokenRow], aggregation: LossAggregation
) -> torch.Tensor:
    """Loss weight of each response token, `[tokens]`; 0 on a dummy row."""
    per_row = token_weights(
        aggregation,
        row_tokens=batch.row_tokens,
        loss_tokens=shard.loss_tokens,
        loss_rows=shard.loss_rows,
        block_means=block_means(shard, batch),
    )
    return batch.spread(torch.zeros_like(per_row) if batch.is_dummy else per_row)
