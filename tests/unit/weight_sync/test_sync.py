"""The sync's order of events, with real files and engines that keep what they read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from herl_megatron.config.schema import WeightSyncConfig
from herl_megatron.engine import Bucket, EngineLost
from herl_megatron.weight_sync.bucket_folder import SHARED_MEMORY
from herl_megatron.weight_sync.sync import EnginesLost, WeightSync, sync_weights
from herl_megatron.weight_sync.transport import read_bucket, write_bucket
from tests.unit.rollout.fakes import RefusingEngine

BUCKETS = 7


@dataclass(frozen=True)
class Planned:
    num_bytes: int


@dataclass
class Trainer:
    """Bucket i holds one tensor filled with i."""

    events: list[str]
    write_s: float = 0.0
    num_bytes: int = 4096
    fail_at: int = -1

    def bucket_plan(self) -> Sequence[Planned]:
        return [Planned(self.num_bytes)] * BUCKETS

    async def write_bucket(self, index: int, path: str) -> Bucket:
        self.events.append(f"write {index}")
        if index == self.fail_at:
            raise RuntimeError("trainer lost")
        bucket = write_bucket(path, [(f"t{index}", torch.full((1024,), float(index)))])
        await asyncio.sleep(self.write_s)
        self.events.append(f"written {index}")
        return bucket


@dataclass
class Engine(RefusingEngine):
    """Reads slowly: at the start and the end of its load the file must hold the same bucket."""

    events: list[str]
    load_s: float = 0.01
    takes_version: bool = True
    slow_at: str = ""
    dies_at: str = ""
    version: int = 0
    seen: dict[str, float] = field(default_factory=dict)

    async def start_weight_update(self) -> None:
        self.note("start")

    async def load_bucket(self, bucket: Bucket) -> None:
        number = bucket.tensors[0].name.removeprefix("t")
        self.note(f"load {number}")
        await asyncio.sleep(3600 if self.slow_at == number else self.load_s)
        for name, tensor in read_bucket(bucket):
            assert tensor.unique().numel() == 1
            self.seen[name] = float(tensor[0])
        self.events.append(f"loaded {number}")

    async def finish_weight_update(self, weight_version: int) -> None:
        self.note("finish")
        if self.takes_version:
            self.version = weight_version

    async def weight_version(self) -> int:
        if self.dies_at == "version":
            self.note("version")
        return self.version

    def note(self, event: str) -> None:
        self.events.append(event)
        if event == self.dies_at:
            raise EngineLost(f"died at {event}")


def run(trainer: Trainer, engines: Sequence[Any], folder: Path, timeout_s: float = 5.0) -> Any:
    paths = (str(folder / "0"), str(folder / "1"))
    return asyncio.run(sync_weights(trainer, engines, 3, paths=paths, timeout_s=timeout_s))


@pytest.mark.parametrize(("write_s", "load_s"), [(0.0, 0.02), (0.02, 0.0), (0.01, 0.01)])
def test_every_engine_gets_every_bucket(tmp_path: Path, write_s: float, load_s: float) -> None:
    events: list[str] = []
    engines = [Engine(events, load_s=load_s), Engine(events, load_s=load_s / 2)]
    stats = run(Trainer(events, write_s=write_s), engines, tmp_path)
    expected = {f"t{index}": float(index) for index in range(BUCKETS)}
    assert [engine.seen for engine in engines] == [expected, expected]
    assert [engine.version for engine in engines] == [3, 3]
    assert (stats.version, stats.buckets, stats.num_bytes) == (3, BUCKETS, BUCKETS * 4096)
    assert events[:2] == ["start", "start"] and events[-2:] == ["finish", "finish"]
    for index in range(BUCKETS - 2):  # a file is rewritten only after both engines read it
        last_read = max(i for i, event in enumerate(events) if event == f"loaded {index}")
        assert last_read < events.index(f"write {index + 2}")


def test_writing_overlaps_loading(tmp_path: Path) -> None:
    events: list[str] = []
    stats = run(Trainer(events, write_s=0.03), [Engine(events, load_s=0.03)], tmp_path)
    for index in range(BUCKETS - 1):
        assert events.index(f"write {index + 1}") < events.index(f"loaded {index}")
    assert stats.write_s >= 0.2 and stats.load_s >= 0.2  # 7 x 0.03 s each
    assert stats.pause_s < stats.write_s + stats.load_s - 0.1


def test_late_engine_is_named_and_the_others_are_served(tmp_path: Path) -> None:
    early, late = Engine([]), Engine([], slow_at="4")
    message = "waited 0.3 s for engine 1 of 2 to load weight bucket 4 of 7"
    with pytest.raises(EnginesLost, match=message) as sync:
        run(Trainer([]), [early, late], tmp_path, timeout_s=0.3)
    assert list(sync.value.lost) == [1] and sync.value.stats.version == 3
    assert early.version == 3 and len(early.seen) == BUCKETS
    assert "finish" not in late.events and "load 5" not in late.events


@pytest.mark.parametrize("step", ["start", "load 3", "finish", "version"])
def test_an_engine_lost_at_any_moment_is_left_out(tmp_path: Path, step: str) -> None:
    """Its next calls would all fail; the others complete the sync, whatever their place."""
    dying, well = Engine([], dies_at=step), Engine([])
    with pytest.raises(EnginesLost, match=f"died at {step}") as sync:
        run(Trainer([]), [dying, well], tmp_path)
    assert list(sync.value.lost) == [0]
    assert well.version == 3 and len(well.seen) == BUCKETS
    assert dying.events[-1] == step


def test_late_trainer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="for the trainer to write weight bucket 0 of 7"):
        run(Trainer([], write_s=60), [Engine([])], tmp_path, timeout_s=0.1)


def test_trainer_failure_ends_the_sync(tmp_path: Path) -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="trainer lost"):
        run(Trainer(events, fail_at=2), [Engine(events)], tmp_path)
    assert "finish" not in events


def test_engine_that_keeps_its_version_is_an_error(tmp_path: Path) -> None:
    engines = [Engine([]), Engine([], takes_version=False)]
    with pytest.raises(RuntimeError, match=r"sync to version 3 the engines serve \[3, 0\]"):
        run(Trainer([]), engines, tmp_path)


def test_weight_sync_owns_its_files() -> None:
    name = f"own{os.getpid()}"  # another suite's tests may run beside these
    events: list[str] = []
    engine = Engine(events)
    sync = WeightSync(Trainer(events), [engine], WeightSyncConfig(timeout_s=5), run_name=name)
    for version in (1, 2):
        assert asyncio.run(sync.run(version)).version == engine.version == version
    (made,) = SHARED_MEMORY.glob(f"herl-weights-{name}-*")
    assert len(list(made.glob("bucket_*"))) == 2
    sync.close()
    assert list(SHARED_MEMORY.glob(f"*herl-weights-{name}-*")) == []


def test_too_little_shared_memory_is_found_before_anything_is_sent() -> None:
    events: list[str] = []
    name = f"small{os.getpid()}"
    with pytest.raises(ValueError, match="two buckets.*weight_sync.bucket_bytes"):
        WeightSync(
            Trainer(events, num_bytes=1 << 60),
            [Engine(events)],
            WeightSyncConfig(),
            run_name=name,
        )
    assert events == []
    assert list(SHARED_MEMORY.glob(f"*herl-weights-{name}-*")) == []
