"""A lost engine is started anew once, with the current weights, and its calls are made again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.config.schema import Config, HindsightConfig, RolloutConfig
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.engine import EngineLost
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.run.parts import TrainParts
from herl_megatron.types import Completion, GenerateRequest, SamplingSettings
from herl_megatron.weight_sync.sync import EnginesLost, SyncStats
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts


class Process(FakeEngine):
    """Serves `lives` calls; then the open ones and all later ones are lost, as with an actor."""

    def __init__(self, version: int | None, lives: float = float("inf")) -> None:
        super().__init__(delay_seed=0)
        self.version = version
        self.killed = False
        self._lives = lives
        self._end = asyncio.Event()

    async def wait(self, requests: Sequence[GenerateRequest]) -> None:
        self._lives -= 1
        if self._lives < 0:
            self.die()
        answer = asyncio.create_task(super().wait(requests))
        ended = asyncio.create_task(self._end.wait())
        await asyncio.wait({answer, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if self._end.is_set():
            raise EngineLost("engine 0 died")
        assert self.version is not None, "it served before it had weights"

    async def score_tokens(self, sequences: Sequence[Any], starts: Sequence[int]) -> list[Any]:
        await self.wait([])
        return [np.full(len(tokens), self.version) for tokens in sequences]

    async def abort(self, request_ids: Sequence[str]) -> None:
        if self._end.is_set():
            raise EngineLost("engine 0 died")

    async def start_weight_update(self) -> None:
        if self._end.is_set():
            raise EngineLost("engine 0 died")

    async def shutdown(self) -> None:
        self.kill()

    def die(self) -> None:
        self._end.set()

    def kill(self) -> None:
        self.killed = True
        self.die()


class Host:
    """Starts processes without weights; `refresh` gives them those of `version`."""

    def __init__(self, *lives: float, limit: int = 3) -> None:
        self.version = 7
        self.processes: list[Process] = []
        self._lives = list(lives)
        self.restarts = Restarts(limit)
        self.restarts.refresh = self.refresh
        self.refused: list[EngineLost] = []
        """What the next refreshes raise."""
        self.engine = RestartingEngine(self.new(self.version), self.start, self.restarts)

    def new(self, version: int | None) -> Process:
        lives = self._lives.pop(0) if self._lives else float("inf")
        self.processes.append(Process(version, lives))
        return self.processes[-1]

    async def start(self) -> Process:
        await asyncio.sleep(0.01)
        return self.new(None)

    async def refresh(self, process: Any) -> None:
        if self.refused:
            raise self.refused.pop()
        process.version = self.version

    @property
    def killed(self) -> list[bool]:
        return [process.killed for process in self.processes]


def request(name: str) -> GenerateRequest:
    return GenerateRequest(name, np.ones(2, np.int32), SamplingSettings(max_tokens=8), seed=3)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 10))


async def many(engine: RestartingEngine, count: int = 40) -> list[Completion]:
    calls = [engine.generate([request(f"r-{index}")]) for index in range(count)]
    return [answers[0] for answers in await asyncio.gather(*calls)]


def test_many_calls_share_one_restart_and_their_answers_are_the_same() -> None:
    async def scenario() -> None:
        calm, shaken = Host(), Host(17)
        expected, got = await many(calm.engine), await many(shaken.engine)
        assert [c.request_id for c in got] == [f"r-{index}" for index in range(40)]
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
        assert shaken.killed == [True, False] and shaken.engine.epoch == 1
        assert shaken.restarts.metrics() == {"rollout/engine_restarts": 1.0}
        assert shaken.restarts.metrics() == {"rollout/engine_restarts": 0.0}
        assert calm.killed == [False]

    run(scenario)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_step_with_restarts_gives_the_groups_of_one_without(streamed: bool) -> None:
    async def groups(*lives: float) -> list[Any]:
        host = Host(*lives)
        rollout = RolloutConfig(group_size=4, streamed=streamed)
        pipeline = RolloutPipeline(
            [host.engine], FakeScorer(0), CharTokenizer(),
            rollout, open_stage(HindsightConfig(), rollout, max_tokens=10_000), seed=0,
        )  # fmt: skip
        found = await pipeline.run(make_prompts(12), step=2)
        assert host.engine.epoch == len(lives)
        return [(r.token_ids.tolist(), r.log_probs.tolist()) for g in found
                for r in [*(x.completion for x in g.group.rollouts),
                          *(x.rollout.completion for x in g.revisions)]]  # fmt: skip

    async def scenario() -> None:
        undisturbed = await groups()
        assert len(undisturbed) > 12 * 4, "some groups have revisions"
        assert await groups(7, 9) == undisturbed

    run(scenario)


def test_what_was_aborted_is_not_drawn_again_on_the_next_process() -> None:
    """The cut of a partial rollout meets an engine that is just lost."""

    async def scenario() -> None:
        host = Host()
        calls = [
            asyncio.create_task(host.engine.generate([request(name) for name in names]))
            for names in (["a-0", "b-0"], ["c-0"])
        ]
        await asyncio.sleep(0)
        first = host.processes[0]
        first.die()  # before the abort reaches it
        await host.engine.abort(["b-0", "c-0", "unknown"])
        both, (cut,) = await asyncio.gather(*calls)
        assert [c.finish_reason for c in both] == ["stop", "abort"]
        assert len(both[0].token_ids) and not len(both[1].token_ids)
        assert (cut.request_id, cut.finish_reason, cut.segments) == ("c-0", "abort", ())
        assert [r.request_id for r in host.processes[1].requests] == ["a-0"]
        # The ids are free again: sent anew, they are drawn.
        (again,) = await host.engine.generate([request("c-0")])
        assert again.finish_reason == "stop"

        only = asyncio.create_task(host.engine.generate([request("d-0")]))
        await asyncio.sleep(0)
        host.processes[1].die()
        await host.engine.abort(["d-0"])
        assert (await only)[0].finish_reason == "abort"
        assert len(host.processes) == 2  # nothing was left to do for a third one

    run(scenario)


@pytest.mark.parametrize("limit", [0, 2])
def test_past_the_limit_every_caller_hears_the_reason(limit: int) -> None:
    async def scenario() -> None:
        host = Host(*[0] * 10, limit=limit)
        calls = [host.engine.generate([request(f"r-{index}")]) for index in range(5)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, WorkerError)
            assert "engine 0 died" in str(error) and f"max_engine_restarts is {limit}" in str(error)
        assert len(host.processes) == limit + 1 and all(host.killed)

    run(scenario)


def test_a_new_process_that_is_lost_before_it_serves_counts_too() -> None:
    async def scenario() -> None:
        host = Host(0)
        host.refused = [EngineLost("died in the sync"), EngineLost("died in the sync")]
        answer = await host.engine.score_tokens([np.ones(3)], [1])
        assert answer[0].tolist() == [7, 7, 7]
        assert host.killed == [True, True, True, False]
        assert host.restarts.metrics() == {"rollout/engine_restarts": 3.0}

    run(scenario)


def test_without_a_trainer_the_new_process_has_its_weights_from_its_folder() -> None:
    async def scenario() -> None:
        host = Host(0)
        host.restarts.refresh = None
        engine = RestartingEngine(host.processes[0], start_with_weights, host.restarts)
        assert (await engine.score_tokens([np.ones(1)], [1]))[0].tolist() == [0]

    async def start_with_weights() -> Process:
        return Process(version=0)

    run(scenario)


def test_a_trainer_that_fails_meanwhile_ends_the_calls_and_leaves_no_process() -> None:
    async def scenario() -> None:
        host = Host(0)

        async def no_trainer(process: Any) -> None:
            raise WorkerError("trainer rank 0 died")

        host.restarts.refresh = no_trainer
        with pytest.raises(WorkerError, match="trainer rank 0 died"):
            await host.engine.generate([request("r-0")])
        assert host.killed == [True, True]

    run(scenario)


def test_a_caller_that_gives_up_does_not_end_the_restart_but_the_shutdown_does() -> None:
    async def scenario() -> None:
        host = Host(0)
        impatient = asyncio.create_task(host.engine.generate([request("impatient-0")]))
        patient = asyncio.create_task(host.engine.generate([request("patient-0")]))
        await asyncio.sleep(0.005)
        impatient.cancel()
        assert (await patient)[0].request_id == "patient-0"
        host.processes[-1].die()
        late = asyncio.create_task(host.engine.generate([request("late-0")]))
        await asyncio.sleep(0.005)
        await host.engine.shutdown()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert host.killed == [True, True]  # no third one was left behind

    run(scenario)


class Sync:
    """A weight sync in which the engines at `lost` die, as the real one reports it."""

    def __init__(self, hosts: Sequence[Host], lost: Sequence[int]) -> None:
        self._hosts, self._lost = hosts, lost

    async def run(self, version: int) -> SyncStats:
        for host in self._hosts:
            host.version = version
        for index in self._lost:
            self._hosts[index].processes[-1].die()
        stats = SyncStats(version, 0, 0, 0.0, 0.0, 0.0)
        lost: dict[int, EngineLost] = {}
        for index, host in enumerate(self._hosts):
            try:
                await host.engine.start_weight_update()
                host.processes[-1].version = version
            except EngineLost as error:
                lost[index] = error
        if lost:
            raise EnginesLost(lost, stats)
        return stats


def test_an_engine_lost_in_a_sync_serves_its_version_when_the_sync_returns() -> None:
    async def scenario() -> None:
        hosts = [Host(), Host(), Host()]
        config = Config.model_validate({"model": {"path": "unused"}})
        nothing: Any = None
        sync: Any = Sync(hosts, lost=[0, 2])
        parts = TrainParts(
            inputs=nothing, scorer=nothing, engines=[host.engine for host in hosts],
            eval_pipeline=nothing, restarts=Restarts(3), source=nothing,
            trainer=TrainerGroup(trainer_sections(config, purpose="train"), []),
            weight_sync=sync, turns=nothing, parity=None,
            checkpoints=nothing, liveness=nothing, measure=nothing, nodes=(), ray=nothing,
            gpus_per_node=0,
        )  # fmt: skip
        stats = await parts.sync_weights(8)
        assert stats.version == 8
        assert [host.processes[-1].version for host in hosts] == [8, 8, 8]
        assert [len(host.processes) for host in hosts] == [2, 1, 2]
        for host in hosts:  # nothing is restarted once more
            assert (await host.engine.score_tokens([np.ones(1)], [1]))[0].tolist() == [8]
        assert [len(host.processes) for host in hosts] == [2, 1, 2]

    run(scenario)
