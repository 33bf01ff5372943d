"""Whose turn it is on a shared device, alone and in the loop's order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from herl_megatron.commands import train
from herl_megatron.config.schema import Config, RolloutConfig
from herl_megatron.observability.timers import Timers
from herl_megatron.run.parts import TrainParts
from herl_megatron.run.turns import Turns
from herl_megatron.weight_sync.sync import SyncStats

Mode = Literal["sync", "partial", "one_step_off"]


class Log:
    """Remembers calls; `log("name", result)` is an asynchronous function."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, name: str, result: Any = None) -> Callable[..., Awaitable[Any]]:
        async def call(*values: Any, **named: Any) -> Any:
            levels = [str(value) for value in values if name == "sleep"]
            self.calls.append(" ".join([name, *levels]))
            return result

        return call

    def turns(self, *, level: Literal[0, 1, 2], mode: Mode = "sync", engines: int = 1) -> Turns:
        engine = SimpleNamespace(sleep=self("sleep"), wake=self("wake"))
        trainer = SimpleNamespace(release_memory=self("release"))
        return Turns(trainer, [engine] * engines, RolloutConfig(sleep=level, mode=mode))


@pytest.mark.parametrize("mode", ["sync", "partial"])
@pytest.mark.parametrize("level", [1, 2])
async def test_every_engine_sleeps_and_wakes_after_the_trainer_made_room(
    mode: Mode, level: Literal[1, 2]
) -> None:
    log = Log()
    turns = log.turns(level=level, mode=mode, engines=2)
    assert turns.drops_weights == (level == 2)
    await turns.to_trainer()
    assert log.calls == [f"sleep {level}"] * 2
    await turns.to_engines()
    assert log.calls[2:] == ["release", "wake", "wake"]


@pytest.mark.parametrize(("level", "mode"), [(0, "sync"), (0, "partial"), (1, "one_step_off")])
async def test_nobody_sleeps(level: Literal[0, 1], mode: Mode) -> None:
    log = Log()
    turns = log.turns(level=level, mode=mode)
    await turns.to_trainer()
    await turns.to_engines()
    assert log.calls == []
    assert not turns.drops_weights


@pytest.mark.parametrize(("level", "primes"), [(1, True), (2, False)])
async def test_engines_that_lost_their_weights_are_not_asked_before_the_sync(
    level: Literal[1, 2], primes: bool
) -> None:
    log = Log()
    gate = SimpleNamespace(due=lambda version: True, prime=log("prime"), check=log("check", {}))
    stats = SyncStats(version=1, num_bytes=0, buckets=0, write_s=0, load_s=0, pause_s=0)
    parts = SimpleNamespace(
        parity=gate, turns=log.turns(level=level), _send_weights=log("send", stats)
    )
    await TrainParts.sync_weights(parts, 1)  # type: ignore[arg-type]
    assert log.calls == ["prime", "send", "check"][not primes :]


async def test_order_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines sleep once all is sampled and scored, and are awake for the weights and evaluation;
    what they sample beside the training (`drain`) ends before they are woken."""
    log = Log()
    stats = SyncStats(version=1, num_bytes=0, buckets=0, write_s=0, load_s=0, pause_s=0)
    nothing = SimpleNamespace(metrics=dict)
    parts = SimpleNamespace(
        trainer=SimpleNamespace(train_step=log("learn", {})),
        source=SimpleNamespace(next=log("sample", []), drain=log("drain"), metrics=dict),
        checkpoints=SimpleNamespace(
            restore=log("restore", (0, None)), save_if_due=log("save"), finish=log("finish")
        ),
        turns=log.turns(level=1),
        liveness=SimpleNamespace(require=log("alive"), see=lambda groups: None),
        sync_weights=log("sync", stats),
        restarts=nothing,
        scorer=nothing,
        measure=SimpleNamespace(step=Log()("measure", {})),
        inputs=SimpleNamespace(eval=()),
    )
    folder = SimpleNamespace(
        checkpoint=None,
        take_back=lambda: log.calls.append("take back"),
        progress=lambda steps, title: steps,
        log=lambda step, metrics: None,
        log_rollouts=lambda name, groups, rows: None,
        sync_metrics=lambda: 0,
        finish=lambda **values: None,
        path=Path("run"),
        policy=Path("run/policy"),
    )
    batch = SimpleNamespace(batch=None, metrics={}, groups=[])
    monkeypatch.setattr(train, "build_train_batch", lambda *values, **named: batch)
    monkeypatch.setattr(train, "require_scores", lambda groups, step, **named: None)
    options = dict(steps=2, export=False, log_rollouts=False)
    config = Config.model_validate({"model": {"path": "none"}, "train": options})
    await train._loop(config, parts, folder, Timers())  # type: ignore[arg-type]
    step = ["sample", "sleep 1", "learn", "drain", "release", "wake", "sync", "save"]
    assert log.calls == ["restore", "take back", "sync", *step, *step, "finish"]
