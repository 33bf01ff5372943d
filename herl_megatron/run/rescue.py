"""What a run keeps when it cannot go on, and when it must not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.ray_watch import RayWatch
from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.errors import SavedForResume, policy_lost
from herl_megatron.files.last_checkpoint import last_checkpoint
from herl_megatron.files.run_files import checkpoint_folders
from herl_megatron.rollout.liveness import DeadPolicyError, require_alive
from herl_megatron.rollout.pipeline import PipelineError
from herl_megatron.rubrics.none_scored import require_any_score
from herl_megatron.run.checkpointer import Checkpointer
from herl_megatron.run.folder import RunFolder
from herl_megatron.types import ScoredGroup
from herl_megatron.weight_sync.parity import ParityError

logger = logging.getLogger(__name__)

_EXPORT_TIMEOUT_S = 60.0  # a scheduler's grace period is rarely longer
_EXPORT_WITHOUT_GCS_S = 40.0  # Ray aborts every process 60 s after its end
_SAVE_WITHOUT_RANKS_S = 10.0


class RescuedParts(Protocol):
    """What is left of a run that trains."""

    @property
    def trainer(self) -> TrainerGroup:
        """The ranks, which may be dead."""
        ...

    @property
    def checkpoints(self) -> Checkpointer:
        """With a save under way, perhaps."""
        ...

    @property
    def ray(self) -> RayWatch:
        """Whether there still is one."""
        ...


@asynccontextmanager
async def rescued(parts: RescuedParts, folder: RunFolder) -> AsyncIterator[None]:
    """A loop: whatever ends it early, what is done is kept (`rescue`), and the error goes on."""
    try:
        yield
    except BaseException as error:
        await rescue(error, parts, folder)
        raise


async def rescue(error: BaseException, parts: RescuedParts, folder: RunFolder) -> None:
    """Write finished groups, the gate's numbers and the trainer's policy.

    The policy is as of the last optimizer step, unless it is lost (`errors`): then
    nothing is exported, and the last good checkpoint is named instead. A trainer that is dead or
    stuck gives none, nor does one whose node has lost its raylet: then the last checkpoint is
    named, with the command that makes a policy of it. A full disk is logged too: nothing raised
    here may hide `error`. A run that is saved to go on later needs none of it, and one that never
    stood where it left off has nothing of its own.
    """
    lost = policy_lost(error)
    if lost:
        folder.resume_helps = False
    if isinstance(error, SavedForResume) or not folder.begun:
        return
    try:
        if isinstance(error, PipelineError):
            folder.log_rollouts("unfinished", error.finished)
        if isinstance(error, ParityError):
            folder.log(max(error.version - 1, 0), error.metrics)
    except OSError as failure:
        logger.error("what was finished could not be written: %s", failure)
    if folder.policy.exists():
        return
    if lost:
        dead = error.version if isinstance(error, DeadPolicyError) else None
        last = await _last_saved(parts, folder, dead=dead)
        logger.error("stopped; the policy is dead and not exported; %s", last)
        return
    if not parts.ray.ranks_stay:
        logger.error("stopped; %s; %s", parts.ray.lost, await _last_checkpoint(parts, folder))
        return
    limit_s = _EXPORT_WITHOUT_GCS_S if parts.ray.lost else _EXPORT_TIMEOUT_S
    try:
        await asyncio.wait_for(parts.trainer.export(folder.policy), limit_s)
        logger.error("stopped; the policy of the last optimizer step is in %s", folder.policy)
    except (WorkerError, OSError, TimeoutError, ValueError) as failure:
        if policy_lost(failure):
            folder.resume_helps = False
            logger.error("stopped; %s; %s", failure, await _last_saved(parts, folder))
            return
        logger.error(
            "stopped; the policy could not be exported: %s; %s",
            str(failure) or f"not within {limit_s:g} s",
            await _last_checkpoint(parts, folder),
        )


async def _last_checkpoint(parts: RescuedParts, folder: RunFolder) -> str:
    """In words, once no save is under way any more."""
    await parts.checkpoints.close(within_s=_SAVE_WITHOUT_RANKS_S)
    return last_checkpoint(folder.path)


async def _last_saved(parts: RescuedParts, folder: RunFolder, *, dead: int | None = None) -> str:
    """What is left of a run whose weights are lost: every save was looked at before it was made,
    one that is still under way too. Rollouts may know more than that look: weights of version
    `dead` and later ones are not good."""
    await parts.checkpoints.close()
    saved = [
        path
        for path in checkpoint_folders(folder.path)
        if dead is None or int(path.name.removeprefix("step_")) < dead
    ]
    if not saved:
        return (
            "no checkpoint was saved of a living policy: start again from model.path with a lower"
            " optimizer.lr"
        )
    return (
        f"the last good weights are in {saved[0]}: start a new run from there (model.megatron_path)"
        " with a lower optimizer.lr; a resumed run would take the same step again"
    )


def require_scores(groups: Sequence[ScoredGroup], step: int, *, full_reward: float = 1.0) -> None:
    """Stop a run that has nothing to learn from, rather than let it spend its remaining steps.

    full_reward: see `rollout.liveness.require_alive`.

    Raises:
        DeadPolicyError: the policy answers nothing any more (`rollout.liveness`).
        RuntimeError: no rollout of the step has a score; names the most frequent reasons.
    """
    require_alive(groups, step, full_reward=full_reward)
    require_any_score((score for group in groups for score in group.scores), of=f"step {step}")
