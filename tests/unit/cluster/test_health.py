"""Waiting for workers, with awaitables in place of Ray's references."""

from __future__ import annotations

import asyncio
import time

import pytest
from ray.exceptions import RayActorError

from herl_megatron.cluster.health import WorkerError, wait_for_all
from herl_megatron.cluster.session import object_store_bytes


async def after(seconds: float, value: object) -> object:
    await asyncio.sleep(seconds)
    if isinstance(value, BaseException):
        raise value
    return value


def wait(*calls, timeout_s: float = 5.0):
    async def run():
        names = [f"rank {index}" for index in range(len(calls))]
        return await wait_for_all(calls, who=names, doing="step", timeout_s=timeout_s)

    return asyncio.run(run())


def test_results_come_in_order_of_the_calls() -> None:
    assert wait(after(0.05, "slow"), after(0, "fast")) == ["slow", "fast"]


def test_a_late_call_is_named_with_the_limit() -> None:
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"rank 1 did not finish 'step' within 0.1 s"):
        wait(after(0, 1), after(30, 2), timeout_s=0.1)
    assert time.monotonic() - begin < 5


def test_a_death_is_blamed_before_the_errors_that_it_caused() -> None:
    with pytest.raises(WorkerError, match=r"rank 1 died during 'step'"):
        wait(after(0, RuntimeError("connection closed by peer")), after(0.1, RayActorError()))


def test_what_the_user_can_mend_stays_a_value_error() -> None:
    with pytest.raises(ValueError, match="heads"):
        wait(after(0, ValueError("TP 3 does not divide 4 heads")))


def test_object_store_is_a_quarter_of_shared_memory_within_bounds() -> None:
    assert object_store_bytes(1 << 30) == 256 << 20
    assert object_store_bytes(64 << 20) == 80 << 20
    assert object_store_bytes(64 << 30) == 1 << 30
