"""What a run keeps when it cannot go on, and when it must not."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.parts import Parts
from herl_megatron.cluster.stop import SavedForResume
from herl_megatron.observability.run_folder import RunFolder
from herl_megatron.rollout.pipeline import PipelineError
from herl_megatron.types import ScoredGroup, Unscored
from herl_megatron.weight_sync.parity import ParityError

logger = logging.getLogger(__name__)

_EXPORT_TIMEOUT_S = 60.0  # a scheduler's grace period is rarely longer
_REASONS_SHOWN = 3


async def rescue(error: BaseException, parts: Parts, folder: RunFolder) -> None:
    """Write finished groups, the gate's numbers and the trainer's policy.

    The policy is as of the last optimizer step. A trainer that is dead or stuck gives none, which
    is logged, as is a full disk: nothing raised here may hide `error`. A run that is saved to go on
    later needs none of it.
    """
    if isinstance(error, SavedForResume):
        return
    try:
        if isinstance(error, PipelineError):
            folder.log_rollouts("unfinished", error.finished)
        if isinstance(error, ParityError):
            folder.log(max(error.version - 1, 0), error.metrics)
    except OSError as failure:
        logger.error("what was finished could not be written: %s", failure)
    if parts.trainer is None or folder.policy.exists():
        return
    try:
        await asyncio.wait_for(parts.trainer.export(folder.policy), _EXPORT_TIMEOUT_S)
        logger.error("stopped; the policy of the last optimizer step is in %s", folder.policy)
    except (WorkerError, OSError, TimeoutError, ValueError) as failure:
        logger.error("stopped; the policy could not be exported: %s", failure)


def require_scores(groups: Sequence[ScoredGroup], step: int) -> None:
    """Stop a run that has nothing to learn from, rather than let it spend its remaining steps.

    Raises:
        RuntimeError: no rollout of the step has a score; names the most frequent reasons.
    """
    scores = [score for group in groups for score in group.scores]
    reasons = Counter(score.reason for score in scores if isinstance(score, Unscored))
    if reasons.total() < len(scores):
        return
    shown = "; ".join(f"{count} x {text}" for text, count in reasons.most_common(_REASONS_SHOWN))
    raise RuntimeError(f"step {step}: none of {len(scores)} responses could be scored: {shown}")
