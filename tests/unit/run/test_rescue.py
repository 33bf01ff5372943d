"""What is kept of a run that ends early, and that the reason of its end is never hidden."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from herl_megatron.cluster.health import WorkerError, wait_for_all
from herl_megatron.cluster.trainer import TrainerGroup, UnsoundWeights, _require_finite
from herl_megatron.config.schema import Config, RolloutConfig, RunConfig
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.errors import RunError
from herl_megatron.rollout.liveness import DeadPolicyError
from herl_megatron.rollout.pipeline import PipelineError, RolloutPipeline
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.rescue import rescue
from herl_megatron.types import TrainRow
from herl_megatron.weight_sync.parity import ParityError
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts
from tests.unit.run.test_checkpoints import save


class Actor:
    """A trainer rank that cannot read its part of a checkpoint."""

    def __init__(self) -> None:
        self.load_checkpoint = SimpleNamespace(remote=self._fail)

    async def _fail(self, folder: str) -> None:
        raise OSError(5, "Input/output error")


class Trainer:
    """Exports a policy of one file."""

    async def export(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")


class NothingUnderWay:
    """A checkpointer without a save to wait for."""

    async def close(self, *, within_s: float = 30) -> None:
        pass


def parts(
    trainer: Any,
    checkpoints: Any = NothingUnderWay(),  # noqa: B008 (no state)
    *,
    lost: str = "",
    ranks_stay: bool = True,
) -> Any:
    ray = SimpleNamespace(lost=lost, ranks_stay=ranks_stay)
    return SimpleNamespace(trainer=trainer, checkpoints=checkpoints, ray=ray)


def config(folder: Path) -> Config:
    return Config.model_validate(
        {"model": {"path": "toy"}, "run": {"dir": str(folder), "name": "run"}}
    )


def messages(caplog: pytest.LogCaptureFixture, work: Any) -> list[str]:
    logger = logging.getLogger("herl_megatron")
    logger.addHandler(caplog.handler)  # it does not propagate once `setup_logging` has run
    asyncio.run(work)
    logger.removeHandler(caplog.handler)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("how", ["rollouts", "metrics"])
def test_a_full_disk_hides_no_reason_and_the_policy_is_still_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    error: Exception = PipelineError("slow", prompt_id="p", phase="scoring", engine_index=None)
    if how == "metrics":
        error = ParityError("apart", version=3, metrics={"parity/max": 1.0})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder.create(config(tmp_path)) as folder:
        monkeypatch.setattr(folder, "log_rollouts", full)
        monkeypatch.setattr(folder, "log", full)
        said = messages(caplog, rescue(error, parts(Trainer()), folder))
        assert (folder.policy / "config.json").exists()
    assert "what was finished could not be written: [Errno 28] No space left on device" in said


def test_weights_of_a_half_read_checkpoint_are_no_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = TrainerGroup(trainer_sections(config(tmp_path), purpose="train"), [Actor()])
    with pytest.raises(WorkerError, match="trainer rank 0 failed during 'load a checkpoint'"):
        asyncio.run(trainer.load_checkpoint(tmp_path, version=4))
    with RunFolder.create(config(tmp_path)) as folder:
        error = WorkerError("trainer rank 0 failed")
        said = messages(caplog, rescue(error, parts(trainer), folder))
        assert not folder.policy.exists()
    assert any("could not be exported: a checkpoint was not read whole" in text for text in said)


def test_a_resume_that_never_stood_where_it_left_off_leaves_everything(tmp_path: Path) -> None:
    """The trainer still holds the weights that the run began with: no policy of this run's."""
    with RunFolder.create(config(tmp_path)) as folder:
        save(folder.path, 1)
    run = RunConfig(dir=str(tmp_path), name=folder.path.name, resume=True)
    resumed = config(tmp_path).model_copy(update={"run": run})
    with RunFolder.create(resumed) as folder:
        error = ValueError("cannot resume the prompt order")
        asyncio.run(rescue(error, parts(Trainer()), folder))
        assert not folder.policy.exists()


class Spoilt:
    """A trainer whose weights are no model's."""

    def __init__(self) -> None:
        self.asked = 0

    async def export(self, folder: Path) -> None:
        self.asked += 1
        raise UnsoundWeights("the policy is not exported: 38 of 38 parameters hold NaN or infinity")


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_lost_weights_are_not_exported_and_the_last_good_ones_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, saved: bool, dead: bool
) -> None:
    error = DeadPolicyError("the policy is dead") if dead else WorkerError("trainer rank 0 failed")
    trainer = Spoilt()
    with suppress(type(error)), RunFolder.create(config(tmp_path)) as folder:
        if saved:
            for name in ("step_000002", "step_000004"):
                (folder.path / "checkpoints" / name).mkdir(parents=True)
        said = messages(caplog, rescue(error, parts(trainer), folder))
        assert not folder.policy.exists()
        raise error
    log = (folder.path / "run.log").read_text()
    assert "run ended early" in log and "resume it with" not in log  # it would end the same way
    (line,) = set(said)
    reason = "the policy is dead and not" if dead else "the policy is not exported: 38 of 38"
    assert reason in line and trainer.asked == (0 if dead else 1)
    if saved:
        assert f"the last good weights are in {folder.path}/checkpoints/step_000004" in line
    else:
        assert "no checkpoint was saved" in line


def nan_rollouts() -> Exception:
    """From an engine whose weights compute NaN."""

    class Nan(FakeEngine):
        def complete(self, request: Any) -> Any:
            answer = super().complete(request)
            return replace(answer, log_probs=np.full_like(answer.log_probs, np.nan))

    pipeline = RolloutPipeline(
        [Nan()], FakeScorer(), CharTokenizer(), RolloutConfig(), None,
        seed=7,
    )  # fmt: skip
    with pytest.raises(PipelineError, match="not finite") as caught:
        asyncio.run(pipeline.run(make_prompts(2), step=0))
    return caught.value


def nan_log_probs() -> Exception:
    """From the trainer's own, before a step of several optimizer steps."""
    row = TrainRow("p", np.ones(1, np.int32), np.ones(1, np.int32), np.zeros(1, np.float32), 0, 0)
    with pytest.raises(WorkerError, match="not finite") as caught:
        _require_finite([np.array([np.nan])], [row], whose="trainer", step=1)
    return caught.value


def from_a_rank() -> Exception:
    """What a rank raised in its own process, with a peer's broken collective before it."""

    async def fail(error: Exception) -> None:
        raise error

    def raised(error: Exception) -> Exception:
        again: Exception = pickle.loads(pickle.dumps(error))
        return again

    async def run() -> None:
        found = RunError("the loss is NaN", policy_lost=True)
        calls = [fail(RuntimeError("connection closed")), fail(raised(found))]
        await wait_for_all(calls, who=["rank 0", "rank 1"], doing="step", timeout_s=5)

    with pytest.raises(WorkerError, match="rank 1 failed during 'step': RunError: the loss") as got:
        asyncio.run(run())
    return got.value


def wrapped() -> Exception:
    """A check of a restarted engine, on its way through the pipeline."""
    error = PipelineError("failed", prompt_id="p", phase="first samples", engine_index=0)
    error.__cause__ = ParityError("apart", version=3, metrics={"parity/max": math.nan})
    return error


@pytest.mark.parametrize(
    "error_of",
    [
        nan_rollouts,
        nan_log_probs,
        from_a_rank,
        wrapped,
        lambda: ParityError("apart", version=3, metrics={"parity/max": math.nan}),
        lambda: ParityError("apart", version=3, metrics={"parity/max": math.inf}),
        lambda: UnsoundWeights("1 of 2 parameters hold NaN"),
        lambda: pickle.loads(pickle.dumps(UnsoundWeights("1 of 2 parameters hold NaN"))),
        lambda: DeadPolicyError("the policy is dead"),
    ],
)
def test_all_that_says_that_the_policy_is_lost_ends_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error_of: Callable[[], Exception]
) -> None:
    """The weights are finite, so the trainer would export them."""
    error = error_of()
    with suppress(type(error)), RunFolder.create(config(tmp_path)) as folder:
        (folder.path / "checkpoints" / "step_000002").mkdir(parents=True)
        said = messages(caplog, rescue(error, parts(Trainer()), folder))
        raise error
    assert not folder.policy.exists() and not folder.resume_helps
    assert "resume it with" not in (folder.path / "run.log").read_text()
    assert any(f"last good weights are in {folder.path}/checkpoints/step_000002" in s for s in said)


def test_a_lost_policy_that_nobody_rescues_is_not_resumed(tmp_path: Path) -> None:
    """As where a resumed run finds it while it starts."""
    with suppress(UnsoundWeights), RunFolder.create(config(tmp_path)) as folder:
        (folder.path / "checkpoints" / "step_000002").mkdir(parents=True)
        raise UnsoundWeights("1 of 2 parameters hold NaN")
    assert "resume it with" not in (folder.path / "run.log").read_text()


@pytest.mark.parametrize(
    "error",
    [
        PipelineError("slow", prompt_id="p", phase="scoring", engine_index=None),
        ParityError("apart", version=3, metrics={"parity/max": 1.0}),
        WorkerError("trainer rank 0 died"),
        RuntimeError("none of 8 responses could be scored"),
    ],
)
def test_other_ends_keep_the_policy_and_may_be_resumed(tmp_path: Path, error: Exception) -> None:
    with suppress(type(error)), RunFolder.create(config(tmp_path)) as folder:
        (folder.path / "checkpoints" / "step_000002").mkdir(parents=True)
        asyncio.run(rescue(error, parts(Trainer()), folder))
        raise error
    assert (folder.policy / "config.json").exists() and folder.resume_helps
    assert "resume it with" in (folder.path / "run.log").read_text()


def test_a_save_under_way_is_waited_for_before_the_last_good_weights_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with suppress(DeadPolicyError), RunFolder.create(config(tmp_path)) as folder:

        async def close() -> None:
            await asyncio.sleep(0.01)
            save(folder.path, 4)

        running = parts(Spoilt(), SimpleNamespace(close=close))
        error = DeadPolicyError("the policy is dead")
        (said,) = set(messages(caplog, rescue(error, running, folder)))  # twice: it propagates
        assert f"the last good weights are in {folder.path}/checkpoints/step_000004" in said


@pytest.mark.parametrize(("version", "good"), [(4, "step_000002"), (2, ""), (5, "step_000004")])
def test_a_checkpoint_of_the_dead_policy_is_not_called_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: int, good: str
) -> None:
    """The look before a save may miss what the next step's rollouts show."""
    with suppress(DeadPolicyError), RunFolder.create(config(tmp_path)) as folder:
        for step in (2, 4):
            save(folder.path, step)
        error = DeadPolicyError("the policy is dead", version)
        (said,) = set(messages(caplog, rescue(error, parts(Spoilt()), folder)))
        if good:
            assert f"the last good weights are in {folder.path}/checkpoints/{good}:" in said
        else:
            assert "no checkpoint was saved of a living policy" in said


class DeadTrainer:
    """Gives no policy."""

    async def export(self, folder: Path) -> None:
        raise WorkerError("trainer rank 1 died during 'export the policy'")


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("what", ["rank", "raylet"])
def test_who_has_no_policy_is_told_of_the_last_checkpoint_and_the_command_for_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, saved: bool, what: str
) -> None:
    """A dead rank, or a node whose raylet died, of which nothing is asked any more."""
    left = {"rank": parts(DeadTrainer()), "raylet": parts(None, lost="L", ranks_stay=False)}[what]
    with RunFolder.create(config(tmp_path / "my runs")) as folder:
        for step in (4, 12) if saved else ():
            save(folder.path, step)
        said = messages(caplog, rescue(RuntimeError("x"), left, folder))[-1]
    assert said.startswith(
        "stopped; L; " if what == "raylet" else "stopped; the policy could not be exported: trainer"
    )
    newest = folder.path / "checkpoints" / "step_000012"
    assert said.endswith(
        f"the last checkpoint is of step 12, {newest}; a policy comes of it by: herl convert to-hf"
        f" --megatron '{newest}' --out '{folder.path}/policy_step_000012'"
        if saved
        else "; no checkpoint was saved"
    )


def test_without_the_gcs_the_policy_is_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunFolder.create(config(tmp_path)) as folder:
        messages(caplog, rescue(asyncio.CancelledError(), parts(Trainer(), lost="L"), folder))
    assert (folder.policy / "config.json").exists()
