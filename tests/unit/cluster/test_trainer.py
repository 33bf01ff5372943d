"""One step's metrics from those of its optimizer steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herl_megatron.batching.shards import Shard
from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.trainer import TrainerGroup, UnsoundWeights, learned_metrics
from herl_megatron.cluster.workers import TrainerRank
from herl_megatron.config.schema import Config, RolloutConfig
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.megatron.soundness import WeightReport
from herl_megatron.types import TrainBatch, TrainRow
from tests.unit.models.test_parameters import architecture

TWO = [
    {"loss": 1.0, "mismatch_max": 4.0, "mismatch_mean": 1.0, "sampled_tokens": 1.0},
    {"loss": 2.0, "mismatch_max": 3.0, "mismatch_mean": 4.5, "sampled_tokens": 3.0},
]


def test_means_and_maxima() -> None:
    got = learned_metrics(TWO, RolloutConfig())
    want = {"loss": 1.5, "mismatch_max": 4.0, "mismatch_mean": 1.375, "sampled_tokens": 2.0}
    assert got == want
    assert learned_metrics([], RolloutConfig()) == {}


@pytest.mark.parametrize("setting", [{"top_p": 0.9}, {"top_k": 50}], ids=str)
def test_no_mismatch_where_log_probs_do_not_compare(setting: dict[str, float]) -> None:
    rollout = RolloutConfig.model_validate(setting)
    assert learned_metrics(TWO, rollout) == {"loss": 1.5, "sampled_tokens": 2.0}


class Ranks(TrainerGroup):
    """Stands for the ranks: notes what they are asked and answers with nothing."""

    def __init__(self, config: Config) -> None:
        super().__init__(trainer_sections(config, purpose="train"), [])
        self.asked: list[tuple[Any, ...]] = []

    async def _call(
        self, method: Callable[..., Any], shards: Sequence[Shard[Any]], *more: float
    ) -> list[Any]:
        self.asked.append((method.__name__, *more))
        empty = [np.zeros(1, np.float32)] * len(shards[0].rows)
        return [empty if "log_probs" in method.__name__ else {}]


def ranks(**sections: dict[str, Any]) -> Ranks:
    return Ranks(Config.model_validate({"model": {"path": "unused"}, **sections}))


def batch(windows: int) -> TrainBatch:
    tokens, log_probs = np.ones(1, np.int32), np.zeros(1, np.float32)
    return TrainBatch(((TrainRow("p", tokens, tokens, log_probs, 0.0, 0.0),),) * windows)


def test_learning_rate_follows_the_planned_optimizer_steps() -> None:
    """Four to a step: step 0 takes none and step 1 three, yet step 2 starts at the ninth."""
    group = ranks(train={"prompts_per_step": 8, "prompts_per_optimizer_step": 2})
    for step, windows in enumerate((0, 3, 1)):
        asyncio.run(group.train_step(batch(windows), step=step))
    assert [more for method, *more in group.asked if method == "train_step"] == [
        [4], [5], [6], [8]
    ]  # fmt: skip


def test_a_step_that_fits_rows_is_a_weight_version(tmp_path: Path) -> None:
    """By which an engine that is started anew meanwhile is told which weights it gets; a checkpoint
    of step 7 goes on from there."""

    async def versions() -> list[int]:
        found = []
        group = ranks()
        for step in (group.sft_step, group.coefficient_step):
            async with group.steady() as version:
                found.append(version)
            await step([])
        group._version = 7  # as `load_checkpoint` leaves it
        await group.sft_step([])
        async with group.steady() as version:
            return [*found, version]

    assert asyncio.run(versions()) == [0, 1, 8]


def test_blocks_reach_every_shard_of_an_optimizer_step() -> None:
    """And those alone: log-probs have no weights."""
    seen: list[tuple[str, tuple[float, ...]]] = []

    class Noting(Ranks):
        async def _call(
            self, method: Callable[..., Any], shards: Sequence[Shard[Any]], *more: float
        ) -> list[Any]:
            seen.extend((method.__name__, shard.block_means) for shard in shards)
            return await super()._call(method, shards, *more)

    algorithm = {"aggregation": "block_token_mean", "block_rows": 1}
    config = {"model": {"path": "unused"}, "algorithm": algorithm}
    asyncio.run(Noting(Config.model_validate(config)).train_step(batch(2), step=0))
    assert seen == [("compute_log_probs", ()), ("train_step", (1.0,)), ("train_step", (1.0,))]


def test_plain_log_probs_outside_of_training() -> None:
    """The parity gate compares the model's own log-probs; training takes the policy's."""
    group = ranks(rollout={"temperature": 0.7})
    asyncio.run(group.train_step(batch(2), step=0))
    assert group.asked[0] == ("compute_log_probs",)
    asyncio.run(group.log_probs(batch(1).rows))
    assert group.asked[-1] == ("compute_log_probs", 1.0)
    assert "mismatch_mean" in learned_metrics(TWO, RolloutConfig(temperature=0.7))


def test_each_row_carries_its_own_log_probs_into_its_optimizer_step() -> None:
    """Two rows, one to an optimizer step; the policy and the reference tell them apart."""
    group = ranks(algorithm={"kl_coef": 0.1})
    seen: list[tuple[Any, ...]] = []

    async def answer(
        method: Callable[..., Any], shards: Sequence[Shard[Any]], *more: float
    ) -> list[Any]:
        if method is not TrainerRank.train_step:
            base = {"compute_log_probs": -1.0, "compute_ref_log_probs": -5.0}[method.__name__]
            return [[np.array([base - i], np.float32) for i in range(len(shards[0].rows))]]
        for row in shards[0].rows:
            assert isinstance(row, TrainRow)
            assert row.old_log_probs is not None and row.ref_log_probs is not None
            seen.append((row.old_log_probs.item(), row.ref_log_probs.item()))
        return [{}]

    group._call = answer  # type: ignore[method-assign]
    asyncio.run(group.train_step(batch(2), step=0))
    assert seen == [(-1.0, -5.0), (-2.0, -6.0)]


@pytest.mark.parametrize("wrong", ["compute_log_probs", "compute_ref_log_probs"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_log_probs_that_are_not_finite_begin_no_step(wrong: str, value: float) -> None:
    group = ranks(algorithm={"kl_coef": 0.1})
    call = group._call

    async def spoilt(
        method: Callable[..., Any], shards: Sequence[Shard[Any]], *more: float
    ) -> list[Any]:
        found = await call(method, shards, *more)
        if method.__name__ == wrong:
            found[0][1] = np.array([value], np.float32)
        return found

    group._call = spoilt  # type: ignore[method-assign]
    who = "trainer" if wrong == "compute_log_probs" else "reference model"
    expected = f"step 3: the {who}'s log-probs of sampled tokens are not finite in 1 of 2 rows"
    with pytest.raises(WorkerError, match=expected):
        asyncio.run(group.train_step(batch(2), step=3))
    assert not any(method == "train_step" for method, *_ in group.asked)


class Holder:
    """A rank with weights of which it can tell."""

    def __init__(self, *bad: str, largest: float = 1.0) -> None:
        report = WeightReport(("a", "b"), bad, largest)
        self.weight_report = self.load_checkpoint = self
        self.remote = lambda *_: asyncio.sleep(0, result=report)


@pytest.mark.parametrize(
    ("rank", "problem"),
    [
        (Holder("b"), "1 of 2 parameters hold NaN or infinity, first b"),
        (Holder(largest=3e29), "the largest weight is 3e[+]29"),
    ],
)
def test_unsound_weights_are_neither_exported_nor_taken_from_a_checkpoint(
    tmp_path: Path, rank: Holder, problem: str
) -> None:
    config = Config.model_validate({"model": {"path": "unused"}})
    group = TrainerGroup(trainer_sections(config, purpose="train"), [Holder(), rank])
    with pytest.raises(UnsoundWeights, match=f"the policy is not exported: {problem}"):
        asyncio.run(group.export(tmp_path / "policy"))
    with pytest.raises(UnsoundWeights, match=f"the weights in .*step_000003: {problem}"):
        asyncio.run(group.load_checkpoint(tmp_path / "step_000003", version=3))
    assert list(tmp_path.iterdir()) == []


class Busy:
    """A rank in the middle of a training step of 0.3 s, which its second call has to wait for."""

    def __init__(self) -> None:
        self.begin_save = self.save_is_written = self.finish_save = self
        self.calls = 0

    def remote(self, *folder: str) -> Any:
        self.calls += 1
        result = {"part": {"bytes": 1}} if self.calls == 3 else True
        return asyncio.sleep(0.3 if self.calls == 2 else 0.0, result=result)


def test_a_training_step_longer_than_the_saves_limit_is_no_failed_save() -> None:
    sections = {"checkpoint": {"timeout_s": 0.1}, "megatron": {"timeout_s": 30.0}}
    rank = Busy()
    config = Config.model_validate({"model": {"path": "unused"}, **sections})
    files = asyncio.run(
        TrainerGroup(trainer_sections(config, purpose="train"), [rank]).save_checkpoint(
            Path("unused")
        )
    )
    assert rank.calls == 3  # begin, written, finish
    assert files == {"part": {"bytes": 1}}


class SlowToStart:
    """A rank that is there at once and takes long to build its model."""

    def __init__(self) -> None:
        self.address = self._after(0, ("127.0.0.1", 1))
        self.join = self._after(0)
        self.setup = self._after(30)

    def _after(self, delay_s: float, result: object = None) -> Any:
        class Method:
            def remote(self, *args: Any, **named: Any) -> Any:
                return asyncio.sleep(delay_s, result=result)

        return Method()


def test_how_long_a_large_model_may_take_to_start_is_said() -> None:
    sections = {"cluster": {"start_timeout_s": 0.2}, "megatron": {"timeout_s": 60.0}}
    config = Config.model_validate({"model": {"path": "unused"}, **sections})
    with pytest.raises(WorkerError, match="trainer rank 0.*build the model.*0.2 s"):
        asyncio.run(
            TrainerGroup(trainer_sections(config, purpose="train"), [SlowToStart()]).setup(
                architecture(), optimizer_steps=1
            )
        )
