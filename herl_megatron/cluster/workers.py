"""Thin Ray actors: each holds one real part and is called through it. No algorithm lives here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from herl_megatron.algos.objective import PolicyObjective
from herl_megatron.algos.own_loss import open_loss
from herl_megatron.batching.shards import Shard
from herl_megatron.cluster.remote import bound_to
from herl_megatron.config.trainer_sections import TrainerSections
from herl_megatron.device import Transport, device_name, take_peak_memory
from herl_megatron.engine import Bucket, EngineConfig, HostedEngine
from herl_megatron.megatron.soundness import WeightReport
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_folder import WrittenShards
from herl_megatron.observability.peaks import Peaks
from herl_megatron.types import (
    CoefficientRow,
    FloatArray,
    TokenRow,
    TrainRow,
)
from herl_megatron.weight_sync.buckets import BucketPlan


@dataclass(frozen=True)
class RankInfo:
    """Where a trainer rank sits in the layout."""

    rank: int
    dp_rank: int
    pp_rank: int
    reports: bool
    """Last pipeline stage, TP and CP rank 0: this rank's results stand for its DP rank."""
    sends_weights: bool
    """In the first model replica: this rank takes part in gathering its stage's buckets."""
    gathers: bool
    """They are gathered on this rank."""
    device: str
    """`device.device_name` of its GPU."""


class TrainerRank:
    """One Megatron rank in its own process."""

    def address(self) -> tuple[str, int]:
        """Host and port where the process group meets (asked of rank 0 only).

        The store listens from now on, on a port that is free: one that was only looked up could be
        another process's by the time of `join`, which finds this store again by its port. Left to
        itself the store would listen on every interface of the machine.
        """
        from torch.distributed import TCPStore

        from herl_megatron.cluster.nodes import listen_at

        host = ray.util.get_node_ip_address()
        listener = listen_at(host)
        port = listener.getsockname()[1]
        self._meeting = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
        return host, port

    def join(
        self, sections: TrainerSections, rank: int, address: tuple[str, int], several_nodes: bool
    ) -> None:
        """Join the trainer's process group, which meets at rank 0's address."""
        # Imported here: the driver imports this module and must stay free of Megatron.
        from herl_megatron.cluster.nodes import interface_of, tcp_url
        from herl_megatron.device import choose_device
        from herl_megatron.megatron.parallel import init_parallel

        name = interface_of(ray.util.get_node_ip_address())
        if name is not None:
            # Left alone, gloo listens where the host name points, in many /etc/hosts to 127.0.1.1.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if name is not None and several_nodes:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # else eth1 means eth10 too
        self._groups = init_parallel(
            sections.megatron,
            rank=rank,
            world_size=sections.megatron.world_size,
            init_method=tcp_url(address),
            device=choose_device(sections.cluster.device),
            seed=sections.seed,
        )

    def setup(
        self,
        sections: TrainerSections,
        architecture: Architecture,
        rank: int,
        optimizer_steps: int,
    ) -> RankInfo:
        """Build the model; `optimizer_steps` in the whole run."""
        from herl_megatron.megatron.actor import MegatronActor
        from herl_megatron.megatron.staging import StagingMemory
        from herl_megatron.weight_sync.source import WeightSource

        self._sections = sections
        self._peaks = Peaks(take_peak_memory)
        objective = None
        if (policy := sections.policy) is not None:
            temperature = policy.rollout.temperature
            own = open_loss(policy.algorithm, folder=policy.folder)
            objective = PolicyObjective(policy.algorithm, policy.hindsight, temperature, own)
        self._actor = MegatronActor(
            model=sections.model,
            megatron=sections.megatron,
            optimizer=sections.optimizer,
            objective=objective,
            total_optimizer_steps=optimizer_steps,
            seed=sections.seed,
            groups=self._groups,
            architecture=architecture,
        )
        self._source = WeightSource(
            self._actor.chunks,
            self._actor.architecture,
            sections.megatron,
            bucket_bytes=sections.weight_sync.bucket_bytes,
            groups=self._groups,
        )
        self._staging_memory = StagingMemory()
        self._write: Any = None  # the `CheckpointWrite` under way
        groups = self._groups
        return RankInfo(
            rank=rank,
            dp_rank=groups.dp.rank,
            pp_rank=groups.pp.rank,
            reports=groups.tp.is_first and groups.cp.is_first and groups.pp.is_last,
            sends_weights=self._source.takes_part,
            gathers=groups.dp_cp.is_first and groups.tp.is_first,
            device=device_name(groups.device),
        )

    def connect_writers(self, writers: Sequence[Sequence[int]], *, transport: Transport) -> None:
        """See `BucketWriters` and `DeviceBuckets`; every rank calls this."""
        from herl_megatron.weight_sync.bucket_writers import BucketWriters
        from herl_megatron.weight_sync.transport_ipc import CudaMemory, DeviceBuckets

        plan, device = self._source.plan(), self._groups.device.torch
        timeout_s = self._sections.megatron.timeout_s
        self._writers: BucketWriters | DeviceBuckets
        if transport == "cuda_ipc":
            memory = CudaMemory(device)
            self._writers = DeviceBuckets(plan, writers, memory=memory, timeout_s=timeout_s)
        else:
            self._writers = BucketWriters(plan, writers, device=device, timeout_s=timeout_s)

    def weight_report(self) -> WeightReport:
        """See `MegatronActor.weight_report`."""
        return self._actor.weight_report()

    def compute_log_probs(
        self, shard: Shard[TokenRow], temperature: float | None = None
    ) -> list[FloatArray] | None:
        """See `MegatronActor.compute_log_probs`."""
        with self._peaks.phase("log-probs"):
            return self._actor.compute_log_probs(shard, temperature=temperature)

    def compute_ref_log_probs(self, shard: Shard[TokenRow]) -> list[FloatArray] | None:
        """See `MegatronActor.compute_ref_log_probs`."""
        with self._peaks.phase("log-probs"):
            return self._actor.compute_ref_log_probs(shard)

    def train_step(self, shard: Shard[TrainRow], schedule_step: int) -> dict[str, float]:
        """See `MegatronActor.train_step`."""
        with self._peaks.phase("train step"):
            return self._actor.train_step(shard, schedule_step=schedule_step)

    def sft_step(self, shard: Shard[TokenRow]) -> dict[str, float]:
        """See `MegatronActor.sft_step`."""
        return self._actor.sft_step(shard)

    def coefficient_step(self, shard: Shard[CoefficientRow]) -> dict[str, float]:
        """See `MegatronActor.coefficient_step`."""
        return self._actor.coefficient_step(shard)

    def release_memory(self) -> None:
        """See `device.release_cached_memory`."""
        from herl_megatron.device import release_cached_memory

        release_cached_memory()

    def begin_save(self, folder: str) -> None:
        """See `megatron.checkpoint.begin_save`; an earlier save's writing ends first."""
        from herl_megatron.megatron.checkpoint import begin_save

        if self._write is not None:
            self._write.wait()
        self._write = begin_save(
            self._actor, folder, groups=self._groups, staging=self._staging_memory
        )

    def save_is_written(self) -> bool:
        """Whether this rank's part is on disk; raises why it never will be."""
        assert self._write is not None, "no save was begun"
        return bool(self._write.done())

    def finish_save(self) -> dict[str, Any]:
        """Complete the checkpoint, together with all ranks, once all are written; size and hash
        of this rank's files."""
        assert self._write is not None, "no save was begun"
        written: dict[str, Any] = self._write.finish()
        self._write = None
        return written

    def load_checkpoint(self, folder: str) -> None:
        """See `megatron.checkpoint.load_checkpoint`."""
        from herl_megatron.megatron.checkpoint import load_checkpoint

        load_checkpoint(self._actor, folder, groups=self._groups)

    def memory_bytes(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """Resident memory of this process, and the most that it held on host and GPU since the last
        call, by phase (`observability.peaks`)."""
        return psutil.Process().memory_info().rss, self._peaks.take()

    def bucket_plan(self) -> tuple[BucketPlan, ...]:
        """The weight stream's buckets, the same on every rank."""
        return self._source.plan()

    def write_bucket(self, index: int, path: str) -> Bucket | None:
        """Take part in gathering one bucket and in bringing it to where the engines read it."""
        with self._peaks.phase("weight sync"):
            return self._writers.write(index, self._source.gather(index), path)

    def export_shard(self, folder: str) -> WrittenShards | None:
        """Write this stage's weights as safetensors shards; returns what was written."""
        from herl_megatron.weight_sync.export import write_stage

        return write_stage(self._source, folder)


HEALTH = "health"
"""Ray concurrency group of the question whether an engine hangs: it never queues behind calls."""


class EngineWorker:
    """One vLLM engine in its own process; an asynchronous actor with the `HEALTH` group."""

    async def start(self, config: EngineConfig) -> None:
        """Build the engine (seconds: vLLM's import and the KV cache)."""
        from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine

        self._engine: HostedEngine = VLLMEngine(config)

    async def ask(self, method: Callable[..., Any], *given: Any) -> Any:
        """What `method` of `RolloutEngine` says of the engine (`cluster.remote`)."""
        return await bound_to(self._engine, method)(*given)

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]  # Ray is not followed
    async def stalled_s(self) -> float:
        """See `HostedEngine.stalled_s`."""
        return self._engine.stalled_s()
