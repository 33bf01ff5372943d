"""The driver's view of the Megatron ranks: whole batches in, global metrics out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import ray

from herl_megatron.algos.loss_metrics import combine
from herl_megatron.batching.shards import Row, Shard, gather_rows, make_shards
from herl_megatron.cluster.health import WorkerError, kill
from herl_megatron.cluster.placement import (
    Placement,
    Slot,
    actor_options,
    bucket_writers,
    device_bucket_writers,
    network_environment,
    ranks_beside_engines,
    trainer_environment,
)
from herl_megatron.cluster.remote import Remotes
from herl_megatron.cluster.workers import RankInfo, TrainerRank
from herl_megatron.config.schema import RolloutConfig
from herl_megatron.config.trainer_sections import TrainerSections
from herl_megatron.device import Transport
from herl_megatron.engine import Bucket
from herl_megatron.errors import LostPolicyError
from herl_megatron.files.manifest import FileFacts
from herl_megatron.megatron.soundness import merge_reports
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.observability.peaks import merge_peaks
from herl_megatron.observability.phases import counted, phases
from herl_megatron.types import (
    CoefficientRow,
    DeviceKind,
    FloatArray,
    TokenRow,
    TrainBatch,
    TrainRow,
)
from herl_megatron.weight_sync.buckets import BucketPlan

P = ParamSpec("P")
R = TypeVar("R")
_SAVE_POLL_S = 0.1
_NO_VERSION = -1  # while a checkpoint is read, and for good where that failed
RowValues = list[FloatArray | None]
Writers = tuple[tuple[int, ...], ...]


class UnsoundWeights(LostPolicyError, WorkerError):
    """The trainer's weights are no model's (`megatron.soundness`)."""


class TrainerGroup:
    """All trainer ranks of a run. Build with `start_trainer`; end with `stop`."""

    def __init__(
        self, sections: TrainerSections, actors: Sequence[Any], slots: Sequence[Slot] | None = None
    ) -> None:
        """`slots` of the actors, where there are several nodes to tell apart."""
        self._sections = sections
        names = [f"trainer rank {rank}" for rank in range(len(actors))]
        nodes = {slot.node_id for slot in slots or ()}
        self._several_nodes = len(nodes) > 1
        if slots and self._several_nodes:
            names = [f"{name} on {slot.node_ip}" for name, slot in zip(names, slots, strict=True)]
        self._ranks = Remotes[TrainerRank](actors, names)
        self._infos: list[RankInfo] = []
        self._plan: tuple[BucketPlan, ...] = ()
        self._writers: Writers = ()
        # A save runs beside the rollouts; what comes next must not count its time as its own.
        self._saving = asyncio.Lock()
        self._changing = asyncio.Lock()  # held while the weights are between two versions
        self._version = 0

    async def setup(self, architecture: Architecture, *, optimizer_steps: int) -> None:
        """Form the process group, build the model on every rank and fetch the bucket plan.

        architecture: of `model.path`, read once for all ranks: each one that read it for itself
            would import transformers, a third of the CPU time in which it starts.
        """
        limit_s = self._sections.cluster.start_timeout_s
        first = self._ranks.on(
            [0], TrainerRank.address, doing="start its process", timeout_s=limit_s
        )
        (address,) = await first()
        joined = [
            (self._sections, rank, address, self._several_nodes) for rank in self._ranks.numbers
        ]
        doing = f"join the process group at {address[0]}:{address[1]}"
        try:
            await self._ranks.each(TrainerRank.join, joined, doing=doing, timeout_s=limit_s)
        except WorkerError as error:
            if not self._several_nodes:
                raise
            raise WorkerError(
                f"{error}; where nodes have several networks, name the one they share in"
                " GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            ) from error
        given = [
            (self._sections, architecture, rank, optimizer_steps) for rank in self._ranks.numbers
        ]
        self._infos = await self._ranks.each(
            TrainerRank.setup, given, doing="build the model", timeout_s=limit_s
        )
        (self._plan,) = await self._ranks.on(
            [0], TrainerRank.bucket_plan, doing="plan buckets", timeout_s=self._timeout_s
        )()
        model = self._sections.model
        await self.require_sound(f"the weights in {model.megatron_path or model.path}")

    @property
    def device(self) -> str:
        """Torch's name of the first rank's GPU; all are taken to be alike. Empty on the CPU."""
        return self._infos[0].device

    async def require_sound(self, what: str) -> None:
        """Look at every weight of every rank; `what` they are, for the message.

        Raises:
            UnsoundWeights: one is NaN, infinite or of a size that no model has; names the first.
        """
        reports = await self._all(TrainerRank.weight_report, "look at its weights")()
        if problem := merge_reports(reports).problem:
            raise UnsoundWeights(f"{what}: {problem}")

    async def connect_writers(
        self, writers_of: Callable[[Sequence[int]], Writers], *, transport: Transport
    ) -> None:
        """Agree on who brings the weight buckets to where the engines read them.

        writers_of: from each stage's gathering rank (`placement.bucket_writers`,
            `placement.device_bucket_writers`).
        """
        senders = {info.pp_rank: info.rank for info in self._infos if info.gathers}
        self._writers = writers_of([senders[stage] for stage in sorted(senders)])
        connect = self._all(TrainerRank.connect_writers, "connect the nodes for weights")
        await connect(self._writers, transport=transport)

    async def train_step(self, batch: TrainBatch, *, step: int) -> dict[str, float]:
        """All optimizer steps of loop step `step`; returns their `learned_metrics`.

        The learning rate follows the planned optimizer steps, `optimizer_steps_per_step` to a loop
        step, so that it does not lag where some have nothing to learn from and are not taken.

        Old log-probs are computed first when more than one optimizer step follows; in the first
        one the current policy is the old one, exactly.
        """
        async with self._changing:
            learned = await self._train_step(batch, step=step)
            self._version = step + 1
            return learned

    @asynccontextmanager
    async def steady(self) -> AsyncIterator[int]:
        """Between two training steps: inside, the weights do not change; gives their version.

        For who sends weights while rollouts and training run side by side (`rollout.mode:
        one_step_off`): the weights in the middle of a training step belong to no version.
        """
        async with self._changing:
            yield self._version

    async def _train_step(self, batch: TrainBatch, *, step: int) -> dict[str, float]:
        rows, policy = batch.rows, self._sections.policy
        assert policy is not None, "a trainer that only fits rows takes no step of the policy"
        old = await self._log_probs(
            TrainerRank.compute_log_probs, rows, len(batch.optimizer_steps) > 1
        )
        ref = await self._log_probs(
            TrainerRank.compute_ref_log_probs, rows, policy.algorithm.kl_coef > 0
        )
        for whose, values in (("trainer", old), ("reference model", ref)):
            _require_finite(values, rows, whose=whose, step=step)
        metrics, start = [], 0
        first = step * policy.train.optimizer_steps_per_step
        known = [
            replace(row, old_log_probs=old_values, ref_log_probs=ref_values)
            for row, old_values, ref_values in zip(rows, old, ref, strict=True)
        ]
        for schedule_step, step_rows in enumerate(batch.optimizer_steps, first):
            window = known[start : start + len(step_rows)]
            start += len(step_rows)
            if any(row.in_loss for row in window):
                shards = self._shards(window, policy.algorithm.block_rows)
                metrics.append(await self._step(TrainerRank.train_step, shards, schedule_step))
        return learned_metrics(metrics, policy.rollout)

    async def sft_step(self, rows: Sequence[TokenRow]) -> dict[str, float]:
        """One optimizer step of supervised fine-tuning on these rows: one more weight version."""
        return await self._fit(TrainerRank.sft_step, rows)

    async def coefficient_step(self, rows: Sequence[CoefficientRow]) -> dict[str, float]:
        """One optimizer step on minus the sum of `coefficient` times response log-prob: one more
        weight version."""
        return await self._fit(TrainerRank.coefficient_step, rows)

    async def _fit(self, method: Callable[..., Any], rows: Sequence[Row]) -> dict[str, float]:
        async with self._changing:
            metrics = await self._step(method, self._shards(rows))
            self._version += 1
        return combine([metrics])

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        """Response log-probs of these rows under the current weights, `[response]` each, of the
        plain distribution: temperature 1, whatever `rollout.temperature` is."""
        values = await self._log_probs(TrainerRank.compute_log_probs, rows, True, 1.0)
        return [value for value in values if value is not None]

    async def memory_bytes(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """The largest rank's resident memory, and by phase the most that a rank held on host and
        GPU since the last call."""
        found = await self._all(TrainerRank.memory_bytes, "memory")()
        return max(resident for resident, _ in found), merge_peaks([peaks for _, peaks in found])

    async def release_memory(self) -> None:
        """Have every rank give back memory that its allocator keeps without use."""
        await self._all(TrainerRank.release_memory, "release memory")()

    async def save_checkpoint(self, folder: Path) -> dict[str, FileFacts]:
        """Have every rank write its part of the training state into `folder`, which exists.

        The ranks copy and write in the background; only an optimizer step that comes before the
        copy has ended waits for it. Returns size and hash of the ranks' files, by name.

        Raises:
            WorkerError: a rank could not write, died, or took longer than `checkpoint.timeout_s`.
        """
        timeout_s = self._sections.checkpoint.timeout_s
        async with self._saving:
            begin = self._ranks.on_all(
                TrainerRank.begin_save, doing="copy a checkpoint", timeout_s=timeout_s
            )
            await begin(str(folder))
        end = time.monotonic() + timeout_s
        waiting = list(self._ranks.numbers)
        while waiting:
            # Asked of each rank between two of its calls: a training step is not interrupted, and
            # the answer may have to wait for its end.
            ask = self._ranks.on(
                waiting,
                TrainerRank.save_is_written,
                doing="write a checkpoint",
                timeout_s=timeout_s + self._timeout_s,
            )
            written = await ask()
            waiting = [r for r, done in zip(waiting, written, strict=True) if not done]
            if waiting and time.monotonic() > end:
                raise WorkerError(
                    f"{self._ranks.names[waiting[0]]} did not finish 'write a checkpoint' within"
                    f" {timeout_s:g} s; raise checkpoint.timeout_s if the disk is really that slow"
                )
            if waiting:
                await asyncio.sleep(_SAVE_POLL_S)
        async with self._saving:
            finish = self._ranks.on_all(
                TrainerRank.finish_save, doing="finish a checkpoint", timeout_s=timeout_s
            )
            by_rank = await finish()
        return {name: facts for files in by_rank for name, facts in files.items()}

    async def load_checkpoint(self, folder: Path, *, version: int) -> None:
        """Have every rank read its part of the training state; any layout may have written it.

        version: of the weights in it, the number of steps done.
        """
        self._version = _NO_VERSION
        load = self._ranks.on_all(
            TrainerRank.load_checkpoint,
            doing="load a checkpoint",
            timeout_s=self._sections.checkpoint.timeout_s,
        )
        await load(str(folder.resolve()))
        await self.require_sound(f"the weights in {folder}")
        self._version = version

    def bucket_plan(self) -> tuple[BucketPlan, ...]:
        """The weight stream's buckets."""
        return self._plan

    async def write_bucket(self, index: int, path: str) -> Bucket:
        """Have the owning stage gather bucket `index`, and write it to shared memory at `path` of
        every machine that has engines (or to the buffer `path` of their GPUs)."""
        stage = self._plan[index].pp_stage
        gathering = [i.rank for i in self._infos if i.sends_weights and i.pp_rank == stage]
        owners = sorted({*gathering, *self._writers[stage]})
        write = self._ranks.on(
            owners,
            TrainerRank.write_bucket,
            doing=f"write weight bucket {index}",
            timeout_s=self._sections.weight_sync.timeout_s,
        )
        written = await write(index, path)
        bucket: Bucket = next(bucket for bucket in written if bucket is not None)
        return bucket

    async def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder, each pipeline stage its own shards.

        Raises:
            WorkerError: a rank failed, or the weights are no policy's.
            UnsoundWeights: the weights are no model's; nothing is written.
        """
        if self._version == _NO_VERSION:
            raise WorkerError("a checkpoint was not read whole, so the weights are no policy's")
        await self.require_sound("the policy is not exported")
        from herl_megatron.models.hf_folder import finish_export, start_export

        folder = folder.resolve()  # the ranks' working directory may be another
        staging = start_export(folder)
        owners = [info.rank for info in self._infos if info.sends_weights]
        export = self._ranks.on(
            owners, TrainerRank.export_shard, doing="export the policy", timeout_s=self._timeout_s
        )
        written = await export(str(staging))
        finish_export(
            staging,
            folder,
            stages=[item for item in written if item is not None],
            source=Path(self._sections.model.path),
        )

    def stop(self) -> None:
        """End every rank's process."""
        kill(self._ranks.actors)

    def _shards(self, rows: Sequence[Row], block_rows: int | None = None) -> list[Shard[Row]]:
        return make_shards(rows, megatron=self._sections.megatron, block_rows=block_rows)

    async def _log_probs(
        self,
        method: Callable[..., Any],
        rows: Sequence[TokenRow],
        wanted: bool,
        *temperature: float,
    ) -> RowValues:
        none: RowValues = [None] * len(rows)
        if not wanted or not rows:
            return none
        shards = self._shards(rows)
        per_dp = await self._call(method, shards, *temperature)
        return list(gather_rows(shards, per_dp))

    async def _step(
        self, method: Callable[..., Any], shards: Sequence[Shard[Any]], *more: int
    ) -> dict[str, float]:
        metrics: dict[str, float] = (await self._call(method, shards, *more))[0]
        return metrics

    async def _call(
        self, method: Callable[..., Any], shards: Sequence[Shard[Any]], *more: float
    ) -> list[Any]:
        """Run `method` on every rank with its DP rank's shard and `more`; results of the reporters
        by DP rank."""
        stored = [ray.put(shard) for shard in shards]  # once per DP rank, not once per rank
        async with self._saving:
            given = [(stored[info.dp_rank], *more) for info in self._infos]
            results = await self._ranks.each(
                method, given, doing=method.__name__, timeout_s=self._timeout_s
            )
        by_dp = {
            info.dp_rank: result
            for info, result in zip(self._infos, results, strict=True)
            if info.reports
        }
        return [by_dp[dp_rank] for dp_rank in range(len(shards))]

    def _all(
        self, method: Callable[Concatenate[TrainerRank, P], R], doing: str
    ) -> Callable[P, Awaitable[list[R]]]:
        return self._ranks.on_all(method, doing=doing, timeout_s=self._timeout_s)

    @property
    def _timeout_s(self) -> float:
        return self._sections.megatron.timeout_s


def _require_finite(values: RowValues, rows: Sequence[TrainRow], *, whose: str, step: int) -> None:
    """WorkerError where a log-prob of a sampled token is not finite; None stands for no values."""
    bad = [
        row.prompt_id
        for value, row in zip(values, rows, strict=True)
        if value is not None and not np.isfinite(value).all()
    ]
    if bad:
        raise WorkerError(
            f"step {step}: the {whose}'s log-probs of sampled tokens are not finite in {len(bad)}"
            f" of {len(rows)} rows, prompts {', '.join(dict.fromkeys(bad))}; the step was not begun"
            " and changed no weight. Likely causes: weights that grew without bound (look at"
            " train/largest_weight and train/grad_norm; lower optimizer.lr), or"
            " rollout.temperature too close to 0",
            policy_lost=whose == "trainer",  # the reference model's are not the policy's
        )


def learned_metrics(
    metrics: Sequence[Mapping[str, float]], rollout: RolloutConfig
) -> dict[str, float]:
    """`algos.loss_metrics.combine` of the optimizer steps; no steps, no numbers.

    `mismatch_*` (`algos.losses`) are left out where sampling truncates the distribution that the
    engine's log-probs are of: nothing of the trainer's compares with them.
    """
    return {
        name: value
        for name, value in combine(metrics).items()
        if not (rollout.truncated and name.startswith("mismatch_"))
    }


async def start_trainer(
    sections: TrainerSections,
    *,
    slots: Sequence[Slot],
    device: DeviceKind,
    optimizer_steps: int,
    engines: Sequence[Slot] = (),
    machines: Mapping[str, str] | None = None,
    transport: Transport = "shared_memory",
) -> TrainerGroup:
    """Start one rank per slot and build the model; `sections` with paths that hold on any node.

    engines: where the weights go; machines: see `Nodes.machines`, none on one node; transport: how.

    Raises:
        WorkerError: a rank did not start; the others are ended first.
        ValueError: the model or the layout is not supported.
    """
    env = trainer_environment(sections.cluster.threads_per_rank, device=device)
    env |= network_environment(os.environ)
    remote = ray.remote(TrainerRank)
    actors = [
        remote.options(**actor_options(slot, device=device, env=env)).remote() for slot in slots
    ]
    group = TrainerGroup(sections, actors, slots)
    homes = machines or {}
    writers_of = partial(
        bucket_writers,
        ranks=[homes.get(slot.node_id, "") for slot in slots],
        engines=[homes.get(slot.node_id, "") for slot in engines],
    )
    if transport == "cuda_ipc":
        beside = ranks_beside_engines(Placement(tuple(slots), tuple(engines)))
        assert beside is not None, "cuda_ipc was chosen for engines on GPUs without a rank"
        writers_of = partial(device_bucket_writers, beside=beside)
    ranks = counted("starting", len(slots), "trainer rank")
    try:
        with phases(f"{ranks}, reading the weights", announce=True):
            architecture = read_architecture(sections.model.path)
            await group.setup(architecture, optimizer_steps=optimizer_steps)
            await group.connect_writers(writers_of, transport=transport)
    except (WorkerError, ValueError, asyncio.CancelledError):
        group.stop()
        raise
    return group
