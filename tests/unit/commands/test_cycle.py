"""What happens around the steps of a loop that fits rows, in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from herl_megatron.commands import cycle as module
from herl_megatron.commands.cycle import Cycle
from herl_megatron.commands.results import EvalResult
from herl_megatron.config.loop_keys import LoopKeys
from herl_megatron.observability.summary import Headline
from herl_megatron.observability.timers import Timers


class Calls(list[str]):
    """Notes calls with their first number; the engines' weights are what was synced last."""

    def of(self, name: str, result: Any = None) -> Callable[..., Awaitable[Any]]:
        async def call(*values: Any, **named: Any) -> Any:
            numbers = [str(value) for value in values if isinstance(value, int)]
            self.append(" ".join([name, *numbers[:1]]))
            return result

        return call


def result(reward: float) -> EvalResult:
    return EvalResult(reward, 0.0, 1, 0, 1.0, {}, {})


def cycle_of(calls: Calls, loop: LoopKeys, *, engines: bool, first: int = 0) -> Cycle:
    parts: Any = SimpleNamespace(
        sync_weights=calls.of("sync"),
        turns=SimpleNamespace(to_trainer=calls.of("sleep"), to_engines=calls.of("wake")),
        inputs=SimpleNamespace(eval=(1,)),
        restarts=SimpleNamespace(metrics=dict),
    )
    folder: Any = SimpleNamespace(
        checkpoint=None,
        take_back=lambda: calls.append("take back"),
        sync_metrics=lambda: 0,
        log=lambda step, values: calls.append(f"log {step}"),
        log_rollouts=lambda name, groups: None,
        policy=Path("policy"),
    )
    before = Headline(0.5, 0.0) if first else None
    saves: Any = SimpleNamespace(
        restore=calls.of("restore", (first, before)),
        save_if_due=calls.of("save"),
        finish=calls.of("saved"),
    )
    trainer: Any = SimpleNamespace(export=calls.of("export"))
    return Cycle(
        loop, folder, Timers(), trainer, saves, engines=parts if engines else None, rests=True
    )


async def run(cycle: Cycle, calls: Calls) -> Any:
    first = await cycle.begin()
    for step in range(first, cycle.loop.steps):
        calls.append(f"step {step}")
        await cycle.after_step(step + 1)
    return await cycle.end()


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of the evaluations to come."""
    rewards = [0.1, 0.2, 0.3]

    async def evaluate(*_: Any) -> tuple[EvalResult, list[Any]]:
        return result(rewards.pop(0)), []

    monkeypatch.setattr(module, "evaluate", evaluate)
    return rewards


def test_engines_wake_for_an_evaluation_and_get_the_weights_of_that_step(
    rewards: list[float],
) -> None:
    """Three steps, one evaluation after every second; what a checkpoint of step 2 says includes
    it, and the policy is on disk before the last one can fail. They sleep while DPO's
    reference is asked, too, within `restore`."""
    calls = Calls()
    cycle = cycle_of(calls, LoopKeys("sft", 3, 3, 2, True, True), engines=True)
    after = asyncio.run(run(cycle, calls))
    assert calls == [
        "sleep", "restore", "take back", "wake", "sync 0", "log 0", "sleep",
        "step 0", "save 1",
        "step 1", "wake", "sync 2", "log 2", "sleep", "save 2",
        "step 2", "save 3",
        "export", "saved", "wake", "sync 3", "log 3",
    ]  # fmt: skip
    assert cycle.before is not None and (cycle.before.reward, after.reward) == (0.1, 0.3)


def test_a_resumed_run_keeps_what_was_measured_before_its_first_step(rewards: list[float]) -> None:
    """As many steps as `eval_every`: nothing in between."""
    calls = Calls()
    cycle = cycle_of(calls, LoopKeys("dpo", 3, 3, 3, True, True), engines=True, first=2)
    asyncio.run(run(cycle, calls))
    assert calls == [
        "sleep", "restore", "take back", "wake", "sync 2", "sleep", "step 2", "save 3", "export",
        "saved", "wake", "sync 3", "log 3",
    ]  # fmt: skip
    assert cycle.before == Headline(0.5, 0.0)


def test_without_engines_nothing_is_woken_or_measured() -> None:
    calls = Calls()
    cycle = cycle_of(calls, LoopKeys("sft", 1, 1, 0, False, True), engines=False)
    assert asyncio.run(run(cycle, calls)) is None
    assert calls == ["restore", "take back", "step 0", "save 1", "export", "saved"]
