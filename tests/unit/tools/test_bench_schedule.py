"""The simulated engine and its clock, against times worked out by hand."""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np
import pytest

from herl_megatron.types import GenerateRequest, SamplingSettings
from tools.bench import bench_schedule
from tools.bench._stubs import Variant, length_of
from tools.bench.bench_schedule import SimulatedEngine, VirtualTimeLoop

LENGTHS = {"a": 2, "b": 3, "c": 1, "late": 1}


class Engine(SimulatedEngine):
    def _length(self, request: GenerateRequest) -> int:
        return LENGTHS[request.request_id]


def _request(name: str, *, priority: int = 0) -> GenerateRequest:
    return GenerateRequest(name, np.zeros(4, np.int32), SamplingSettings(), 0, priority)


def test_a_batch_takes_the_time_of_its_steps_and_revisions_wait_for_first_samples() -> None:
    options = argparse.Namespace(step_ms=10.0, sequence_ms=1.0, prefill_ms=0.5)
    done: dict[str, float] = {}

    async def one(engine: Engine, name: str, priority: int = 0) -> None:
        (completion,) = await engine.generate([_request(name, priority=priority)])
        assert len(completion.token_ids) == LENGTHS[name]
        done[name] = round(1000 * asyncio.get_running_loop().time(), 6)

    async def both() -> None:
        engine = Engine(options, slots=2, seed=(0,))
        await asyncio.gather(
            one(engine, "a"), one(engine, "b"), one(engine, "late", 1), one(engine, "c")
        )

    begun = time.monotonic()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(both())
    assert time.monotonic() - begun < 5
    # a and b: 10 + 2 + 8 * 0.5 = 16, then 12: a ends at 28. c: 12 + 4 * 0.5 = 14 with b's last
    # step: both end at 42. Last the revision, alone: 10 + 1 + 2 = 13.
    assert done == {"a": 28, "b": 42, "c": 42, "late": 55}


def test_a_cancelled_timer_does_not_move_the_clock() -> None:
    async def waits() -> float:
        async with asyncio.timeout(1e6):
            await asyncio.sleep(2.5)
        await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(waits()) == pytest.approx(3.5)


def test_every_schedule_samples_the_same_tokens_and_streaming_is_no_slower() -> None:
    options = argparse.Namespace(
        prompts=4, group=8, median=20.0, longest=80, step_ms=7.0, sequence_ms=0.1, prefill_ms=0.04,
        judge_s=0.2,
    )  # fmt: skip

    def run(name: str, revised: int, streamed: bool) -> tuple[float, int, int]:
        variant = Variant(name, revised, streamed, judge=True)
        return bench_schedule.rollout_seconds(options, variant, slots=16, seed=3)

    plain, stream, barriers = run("", 0, True), run("", 1, True), run("", 1, False)
    assert plain[1:] == (stream[1], 0)
    assert stream[1:] == barriers[1:] and stream[2] > 0
    assert plain[0] < stream[0] < barriers[0]


def test_lengths_are_lognormal_and_cut() -> None:
    lengths = [
        length_of(f"request{index}", seed=(1, 2), middle=100, longest=400) for index in range(4000)
    ]
    assert 95 < np.median(lengths) < 105
    assert max(lengths) == 400
    # A lognormal with sigma 1 is above 4 times its median with probability 0.0828.
    assert np.mean(np.asarray(lengths) == 400) == pytest.approx(0.083, abs=0.013)
    assert length_of("x", seed=(1, 2), middle=100, longest=400) == length_of(
        "x", seed=(1, 2), middle=100, longest=400
    )
