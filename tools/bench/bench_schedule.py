"""The rollout schedule at full size in virtual time: the real pipeline over a simulated engine.

    python tools/bench/bench_schedule.py  # 512 rollouts, 20 seeds, about 3 minutes

On a CPU a decode step costs nearly as much per sequence as in all, so idle places in the batch cost
nothing and filling them gains nothing. On a GPU a step has a large fixed part. This bench runs
`rollout.pipeline` unchanged on an event loop whose clock jumps to the next event, over an engine
that decodes its batch in `--step-ms` plus `--sequence-ms` per sequence plus `--prefill-ms` per
prompt token that it admits (defaults: an 8B model on one H100, as published decode and prefill
rates suggest; an assumption, not a measurement). Lengths are lognormal, sigma 1; the judge takes
`--judge-s` per response, 64 at a time. Training takes 3/7 of the RLVR rollout phase of the same
seed, so that generation is 70 % of a plain step. Nothing here depends on the machine's load; the
interval is over seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.types import Completion, GenerateRequest, IntArray, Message
from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file
from tools.bench._stubs import StubScorer, Variant, length_of, make_prompts

_JUDGE_CALLS = 64
_GENERATION_SHARE = 0.7
_TIMEOUT_S = 1e8


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: with nothing to do, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__()

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def _run_once(self) -> None:
        loop: Any = self
        while loop._scheduled and loop._scheduled[0]._cancelled:
            loop._timer_cancelled_count -= 1
            heapq.heappop(loop._scheduled)._scheduled = False
        if not loop._ready and loop._scheduled:
            self._now_s = max(self._now_s, loop._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


class SimulatedEngine:
    """`RolloutEngine.generate` on a batch of `slots`, first by priority, then by arrival."""

    def __init__(self, options: argparse.Namespace, *, slots: int, seed: Sequence[int]) -> None:
        self._options, self._slots, self._seed = options, slots, seed
        self._waiting: list[tuple[int, int, GenerateRequest, asyncio.Future[Completion]]] = []
        self._running: list[tuple[int, int, GenerateRequest, asyncio.Future[Completion]]] = []
        self._order = itertools.count()
        self._steps = 0
        self._task: asyncio.Task[None] | None = None

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Completions of seeded lengths after the batch steps that they take."""
        futures: list[asyncio.Future[Completion]] = []
        for request in requests:
            future = asyncio.get_running_loop().create_future()
            futures.append(future)
            heapq.heappush(self._waiting, (request.priority, next(self._order), request, future))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._decode())
        return list(await asyncio.gather(*futures))

    async def _decode(self) -> None:
        options = self._options
        while self._waiting or self._running:
            admitted = 0
            while self._waiting and len(self._running) < self._slots:
                _, order, request, future = heapq.heappop(self._waiting)
                end = self._steps + self._length(request)
                heapq.heappush(self._running, (end, order, request, future))
                admitted += len(request.prompt_token_ids)
            step_ms = options.step_ms + options.sequence_ms * len(self._running)
            await asyncio.sleep((step_ms + options.prefill_ms * admitted) / 1000)
            self._steps += 1
            while self._running and self._running[0][0] <= self._steps:
                _, _, request, future = heapq.heappop(self._running)
                future.set_result(self._completion(request))

    def _length(self, request: GenerateRequest) -> int:
        longest, middle = self._options.longest, self._options.median
        return length_of(request.request_id, seed=self._seed, middle=middle, longest=longest)

    def _completion(self, request: GenerateRequest) -> Completion:
        tokens = self._length(request)
        ids, log_probs = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32)
        return Completion(request.request_id, ids, log_probs, "length", 0)


class WordCountTokenizer:
    """One token a word."""

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        """As many ids as there are words."""
        return np.zeros(sum(len(m.content.split()) for m in messages), np.int32)

    def plain_ids(self, text: str) -> IntArray:
        """As many ids as there are words."""
        return np.zeros(len(text.split()), np.int32)

    def reply_ids(self, messages: Sequence[Message], *, ended: bool) -> IntArray:
        """Nothing here has a second turn."""
        raise NotImplementedError

    def decode(self, ids: IntArray) -> str:
        """As many words as there are ids."""
        return " stone" * len(ids)


def rollout_seconds(
    options: argparse.Namespace, variant: Variant, *, slots: int, seed: int
) -> tuple[float, int, int]:
    """Virtual time of one rollout phase, tokens of first samples and of revisions."""

    async def phase() -> tuple[float, int, int]:
        hindsight = HindsightConfig(
            enabled=variant.revised > 0, select="all_failed",
            max_experiences=max(1, variant.revised),
        )  # fmt: skip
        rollout = RolloutConfig(
            group_size=options.group, max_response_tokens=options.longest, timeout_s=_TIMEOUT_S,
            streamed=variant.streamed,
        )  # fmt: skip
        judge_s = options.judge_s if variant.judge else 0.0
        scorer = StubScorer(seed=(seed,), judge_s=judge_s, concurrency=_JUDGE_CALLS)
        pipeline = RolloutPipeline(
            [SimulatedEngine(options, slots=slots, seed=(seed,))],  # type: ignore[list-item]
            scorer, WordCountTokenizer(), rollout,
            open_stage(hindsight, rollout, max_tokens=10 * options.longest), seed=seed,
        )  # fmt: skip
        await pipeline.run(make_prompts(options.prompts, cycle=0, variant=0), step=0)
        stats = pipeline.stats
        assert stats is not None, "the pipeline has run"
        now = asyncio.get_running_loop().time()
        return now, stats.rollout_tokens, stats.revision_tokens

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(phase())


def measure(options: argparse.Namespace, slots: int) -> dict[str, list[tuple[float, int, int]]]:
    """Every variant under every seed."""
    group = options.group
    variants = [
        Variant(f"{name}{judge}", revised, streamed, judge=bool(judge))
        for judge in ("", " judge")
        for name, revised, streamed in (
            ("rlvr", 0, True),
            ("1/8", group // 8, True),
            ("1/4", group // 4, True),
            ("1/1", group, True),
            ("1/8 barriers", group // 8, False),
        )
    ]
    return {
        variant.name: [
            rollout_seconds(options, variant, slots=slots, seed=seed)
            for seed in range(options.seeds)
        ]
        for variant in variants
    }


def summarize(measured: dict[str, list[tuple[float, int, int]]], slots: int) -> list[Row]:
    """Ratios of whole steps over the seeds."""
    train = [s * (1 / _GENERATION_SHARE - 1) for s, _, _ in measured["rlvr"]]

    def steps(name: str) -> list[float]:
        return [s + t for (s, _, _), t in zip(measured[name], train, strict=True)]

    rows = []
    goals = {"1/8": 1.25, "1/4": 1.35}
    for judge in ("", " judge"):
        for share in ("1/8", "1/4", "1/1"):
            found = paired_ratio(steps(share + judge), steps(f"rlvr{judge}"))
            goal = goals.get(share)
            said = (f"<= {goal}x", found[0] <= goal) if goal else ("", None)
            name = f"{slots} slots{judge}: HeRL {share} over RLVR, step"
            rows.append(Row(name, interval_text(found), *said))
        found = paired_ratio(steps(f"1/8 barriers{judge}"), steps(f"1/8{judge}"))
        name = f"{slots} slots{judge}: barriers over stream at 1/8, step"
        rows.append(Row(name, interval_text(found), ">= 1.15x", found[0] >= 1.15))
    extra = [r / f for _, f, r in measured["1/8"]]
    rows.append(Row(f"{slots} slots: extra tokens at 1/8", f"{np.median(extra):.3f}"))
    return rows


def main() -> None:
    """Parse the arguments, simulate, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8, help="a multiple of 8")
    parser.add_argument("--median", type=float, default=600, help="tokens of a response")
    parser.add_argument("--longest", type=int, default=4096, help="tokens of a response")
    parser.add_argument("--step-ms", type=float, default=7.0)
    parser.add_argument("--sequence-ms", type=float, default=0.09)
    parser.add_argument("--prefill-ms", type=float, default=0.04)
    parser.add_argument("--judge-s", type=float, default=2.0, help="median of a call")
    parser.add_argument("--out", type=new_file, help="JSON")
    options = parser.parse_args()
    started_on = machine()
    rows: list[Row] = []
    raw: dict[str, Any] = {"options": {key: str(value) for key, value in vars(options).items()}}
    for slots in options.slots:
        measured = measure(options, slots)
        rows += summarize(measured, slots)
        raw[f"{slots} slots"] = measured
        print(f"{slots} slots done", file=sys.stderr, flush=True)
    report("rollout schedules in virtual time", rows, raw=raw, started_on=started_on,
           out=options.out)  # fmt: skip


if __name__ == "__main__":
    main()
