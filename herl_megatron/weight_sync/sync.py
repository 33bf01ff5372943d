"""One weight sync: pause the engines, stream the trainer's buckets through shared memory, resume.

Two files are used in turn, so the trainer gathers the next bucket while the engines load the last.
They have the same paths on every machine that has engines (`spread`); nothing but layouts passes
through the driver. An engine that is lost on the way does not keep the others from their weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from herl_megatron.config.schema import WeightSyncConfig
from herl_megatron.device import Transport
from herl_megatron.engine import Bucket, EngineLost, RolloutEngine
from herl_megatron.weight_sync import transport_ipc
from herl_megatron.weight_sync.bucket_folder import BucketFolder, check_shared_memory

T = TypeVar("T")


class PlannedBucket(Protocol):
    """What the sync needs to know of a bucket before it is written."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        ...


class WeightTrainer(Protocol):
    """The sending half: a plan, and buckets written on demand."""

    def bucket_plan(self) -> Sequence[PlannedBucket]:
        """All buckets of one sync, in order."""
        ...

    async def write_bucket(self, index: int, path: str) -> Bucket:
        """Gather bucket `index` and write it to the shared-memory file at `path`."""
        ...


@dataclass(frozen=True)
class SyncStats:
    """What one sync moved and how long it took.

    write_s and load_s overlap, so their sum may exceed `pause_s`, the time without generation.
    parity: the gate's metrics where it ran after this sync (`weight_sync.parity`).
    """

    version: int
    num_bytes: int
    buckets: int
    write_s: float
    load_s: float
    pause_s: float
    parity: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The numbers by metric name."""
        moved = {
            "weight_sync/version": float(self.version),
            "weight_sync/bytes": float(self.num_bytes),
            "weight_sync/pause_s": self.pause_s,
        }
        if self.pause_s:
            moved["perf/weight_sync_gb_per_s"] = self.num_bytes / self.pause_s / 1e9
        return moved | dict(self.parity)


class EnginesLost(EngineLost):
    """Engines were lost during a sync that the others completed.

    lost: what happened, by the engine's position; stats: of the sync.
    """

    def __init__(self, lost: Mapping[int, EngineLost], stats: SyncStats) -> None:
        super().__init__("; ".join(str(error) for error in lost.values()))
        self.lost = dict(lost)
        self.stats = stats


class WeightSync:
    """Syncs a trainer's weights to its engines; owns this machine's files until `close`.

    Raises `ValueError` when shared memory is too small for two buckets, before anything is sent.

    Attributes:
        folder: the files' folder, which other machines of the run need too; None when buckets stay
            in the memory of GPUs.
        needed_bytes: what the files will take there.
    """

    def __init__(
        self,
        trainer: WeightTrainer,
        engines: Sequence[RolloutEngine],
        config: WeightSyncConfig,
        *,
        run_name: str = "run",
        transport: Transport = "shared_memory",
    ) -> None:
        self._trainer = trainer
        self._engines = engines
        self._timeout_s = config.timeout_s
        self.folder: Path | None = None
        self._paths = transport_ipc.PATHS
        self.needed_bytes = 2 * max((b.num_bytes for b in trainer.bucket_plan()), default=0)
        self._folder: BucketFolder | None = None
        if transport == "cuda_ipc":
            return
        self._folder = BucketFolder(run_name)
        self.folder, self._paths = self._folder.folder, self._folder.paths
        try:
            check_shared_memory(self.needed_bytes, folder=self.folder)
        except ValueError:
            self.close()
            raise

    async def run(
        self, version: int, *, engines: Sequence[RolloutEngine] | None = None
    ) -> SyncStats:
        """Bring every engine, or only `engines`, to the trainer's weights and call them `version`.

        One sync at a time: they share the files. Raises as `sync_weights`.
        """
        return await sync_weights(
            self._trainer,
            self._engines if engines is None else engines,
            version,
            paths=self._paths,
            timeout_s=self._timeout_s,
        )

    def close(self) -> None:
        """Remove the shared-memory files; may be called twice."""
        if self._folder is not None:
            self._folder.close()


async def sync_weights(
    trainer: WeightTrainer,
    engines: Sequence[RolloutEngine],
    version: int,
    *,
    paths: tuple[str, str],
    timeout_s: float,
) -> SyncStats:
    """Run one sync. After a failure the engines that were being updated refuse to sample.

    paths: the two files that buckets are written to in turn.
    timeout_s: longest wait for one bucket to be written or loaded, and for one engine call.

    Raises:
        EnginesLost: which engines were lost or too late; all others serve the version.
        TimeoutError: the trainer was too late; names what was waited for.
        RuntimeError: an engine did not take the version.
    """
    begin = time.monotonic()
    receivers = _Receivers(engines, timeout_s)
    await receivers.all("start the update", lambda engine: engine.start_weight_update())
    stream = _Stream(trainer, receivers, paths=paths, timeout_s=timeout_s)
    await stream.run()
    await receivers.all("finish the update", lambda engine: engine.finish_weight_update(version))
    versions = await receivers.all(
        "tell its weight version", lambda engine: engine.weight_version()
    )
    if any(served != version for served in versions):
        raise RuntimeError(f"after the sync to version {version} the engines serve {versions}")
    stats = SyncStats(
        version=version,
        num_bytes=stream.num_bytes,
        buckets=len(trainer.bucket_plan()),
        write_s=stream.write_s,
        load_s=stream.load_s,
        pause_s=time.monotonic() - begin,
    )
    if receivers.lost:
        raise EnginesLost(receivers.lost, stats)
    return stats


class _Receivers:
    """The engines of one sync; those that are lost or too late are left out from then on."""

    def __init__(self, engines: Sequence[RolloutEngine], timeout_s: float) -> None:
        self._engines = engines
        self._timeout_s = timeout_s
        self.lost: dict[int, EngineLost] = {}

    async def all(self, doing: str, call: Callable[[RolloutEngine], Awaitable[T]]) -> list[T]:
        """Await one call on each engine that is left; results of those that are left after it."""
        left = [index for index in range(len(self._engines)) if index not in self.lost]
        results = await asyncio.gather(*(self._one(index, doing, call) for index in left))
        return [result for found in results for result in found]

    async def _one(
        self, index: int, doing: str, call: Callable[[RolloutEngine], Awaitable[T]]
    ) -> tuple[T, ...]:
        waited_for = f"engine {index} of {len(self._engines)} to {doing}"
        try:
            return (await _within(call(self._engines[index]), self._timeout_s, waited_for),)
        except TimeoutError as error:
            self.lost[index] = EngineLost(str(error))
        except EngineLost as error:
            self.lost[index] = error
        return ()


class _Stream:
    """The buckets of one sync on their way, at most two at a time."""

    def __init__(
        self,
        trainer: WeightTrainer,
        receivers: _Receivers,
        *,
        paths: tuple[str, str],
        timeout_s: float,
    ) -> None:
        self._trainer = trainer
        self._receivers = receivers
        self._paths = paths
        self._timeout_s = timeout_s
        self.num_bytes = 0
        self.write_s = 0.0
        self.load_s = 0.0

    async def run(self) -> None:
        """Send every bucket: bucket i is written while bucket i - 1 is loaded."""
        total = len(self._trainer.bucket_plan())
        loading: asyncio.Task[None] | None = None
        try:
            for index in range(total):
                # The file of bucket index - 2 is free: its load was awaited in the last turn.
                bucket = await self._write(index, total)
                if loading is not None:
                    await loading
                loading = asyncio.create_task(self._load(bucket, index, total))
            if loading is not None:
                await loading
        finally:
            if loading is not None:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)

    async def _write(self, index: int, total: int) -> Bucket:
        begin = time.monotonic()
        bucket = await _within(
            self._trainer.write_bucket(index, self._paths[index % 2]),
            self._timeout_s,
            f"the trainer to write weight bucket {index} of {total}",
        )
        self.num_bytes += bucket.num_bytes
        self.write_s += time.monotonic() - begin
        return bucket

    async def _load(self, bucket: Bucket, index: int, total: int) -> None:
        begin = time.monotonic()
        await self._receivers.all(
            f"load weight bucket {index} of {total}", lambda engine: engine.load_bucket(bucket)
        )
        self.load_s += time.monotonic() - begin


async def _within(call: Awaitable[T], timeout_s: float, waited_for: str) -> T:
    try:
        return await asyncio.wait_for(call, timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"waited {timeout_s} s for {waited_for}") from error
