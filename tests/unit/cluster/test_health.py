"""Waiting for workers, with awaitables in place of Ray's references."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from herl_megatron.cluster.health import WorkerError, wait_for_all
from herl_megatron.cluster.session import object_store_bytes
from herl_megatron.run.rescue import require_scores
from herl_megatron.types import RolloutGroup, Score, Scored, ScoredGroup, Unscored
from tests.unit.hindsight.groups import PROMPT, PROMPT_IDS


async def after(seconds: float, value: object) -> object:
    await asyncio.sleep(seconds)
    if isinstance(value, BaseException):
        raise value
    return value


def wait(*calls: Awaitable[Any], timeout_s: float = 5.0) -> list[Any]:
    async def run() -> list[Any]:
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


def test_who_is_cancelled_in_a_wait_leaves_no_call_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run that is interrupted kills its actors: nobody may complain of their answers then."""

    async def run() -> None:
        calls = [after(0.1, RayActorError()), after(30, None)]
        waiting = asyncio.create_task(
            wait_for_all(calls, who=["rank 0", "rank 1"], doing="step", timeout_s=5)
        )
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0.2)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_what_the_user_can_mend_stays_a_value_error() -> None:
    with pytest.raises(ValueError, match="heads"):
        wait(after(0, ValueError("TP 3 does not divide 4 heads")))


def test_object_store_is_a_quarter_of_shared_memory_within_bounds() -> None:
    assert object_store_bytes(1 << 30) == 256 << 20
    assert object_store_bytes(64 << 20) == 80 << 20
    assert object_store_bytes(64 << 30) == 1 << 30


REPORT = """The actor died unexpectedly before finishing this task.
\tclass_name: TrainerRank
The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker \
exit detail: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.1.2.3, ID: 496c84d0) where the lease was running was 22.90GB / 24.00GB \
(0.954167), which exceeds the memory usage threshold of 0.95.
Top 10 memory users:
PID\tMEM(GB)\tCOMMAND
4711\t19.80\tray::TrainerRank.train_step
4712\t1.25\tray::EngineWorker
"""


def test_a_worker_that_died_for_want_of_memory_says_who_held_it() -> None:
    """The first of Ray's lines hid it."""
    with pytest.raises(WorkerError) as caught:
        wait(after(0, RayActorError(error_msg=REPORT)))
    assert str(caught.value) == (
        "rank 0 died during 'step': The actor died unexpectedly before finishing this task: node"
        " 10.1.2.3 had 22.90 of 24.00 GB in use, most of it 19.80 GB by"
        " ray::TrainerRank.train_step (process 4711), 1.25 GB by ray::EngineWorker (process 4712);"
        " `herl plan` says what each process of a run needs, other programs there need theirs"
    )


def test_a_step_without_any_score_stops_the_run_with_the_reasons() -> None:
    def group(*scores: Score) -> ScoredGroup:
        return ScoredGroup(RolloutGroup(PROMPT, PROMPT_IDS, ()), scores)

    down, slow = Unscored("judge down"), Unscored("too slow")
    with pytest.raises(RuntimeError, match="step 3: none of 3 .*: 2 x judge down; 1 x too slow"):
        require_scores([group(down, slow), group(down)], step=3)
    require_scores([group(down, Scored(0.0, (), (), ("a",)))], step=3)
