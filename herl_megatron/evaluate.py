"""Held-out evaluation: the training path's rollouts and scoring, without hindsight or training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from herl_megatron.cluster.parts import Parts, load_inputs, open_parts
from herl_megatron.config.paths import EVALUATED
from herl_megatron.config.schema import Config
from herl_megatron.observability.run_folder import RunFolder
from herl_megatron.rubrics.rubric import counted_under
from herl_megatron.types import Prompt, Scored, ScoredGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalResult:
    """Means over the scored responses of the held-out prompts.

    reward: mean reward in the rubrics' scale.
    all_satisfied: share of scored responses that meet every verifiable criterion.
    response_tokens: mean length in tokens, unscored responses included.
    per_check: share of responses that satisfy a check, by check name; statements under `judge`.
    """

    reward: float
    all_satisfied: float
    responses: int
    unscored: int
    response_tokens: float
    per_check: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """The numbers by metric name."""
        flat = {
            "eval/reward": self.reward,
            "eval/all_satisfied": self.all_satisfied,
            "eval/unscored": float(self.unscored),
            "eval/response_tokens": self.response_tokens,
        }
        return flat | {f"eval/check/{name}": value for name, value in self.per_check.items()}


def summarize(groups: Sequence[ScoredGroup]) -> EvalResult:
    """Average scored groups. Responses without a score are counted, not averaged.

    Raises:
        RuntimeError: no response could be scored; names the most frequent reasons.
    """
    scores = [score for group in groups for score in group.scores]
    scored = [score for score in scores if isinstance(score, Scored)]
    if not scored:
        reasons = Counter(score.reason for score in scores if not isinstance(score, Scored))
        shown = "; ".join(f"{count} x {text}" for text, count in reasons.most_common(3))
        raise RuntimeError(f"evaluation: none of {len(scores)} responses could be scored: {shown}")
    lengths = [len(r.completion.token_ids) for group in groups for r in group.group.rollouts]
    hits: dict[str, list[int]] = {}
    for group in groups:
        names = {c.id: counted_under(c) for c in group.group.prompt.rubric.criteria}
        for score in group.scores:
            if isinstance(score, Scored):
                for criterion_id in score.satisfied:
                    hits.setdefault(names[criterion_id], []).append(1)
                for criterion_id in score.unmet:
                    hits.setdefault(names[criterion_id], []).append(0)
    return EvalResult(
        reward=sum(score.reward for score in scored) / len(scored),
        all_satisfied=sum(bool(score.satisfied) and not score.unmet for score in scored)
        / len(scored),
        responses=len(scores),
        unscored=len(scores) - len(scored),
        response_tokens=sum(lengths) / len(lengths),
        per_check={name: sum(values) / len(values) for name, values in sorted(hits.items())},
    )


async def evaluate(parts: Parts, prompts: Sequence[Prompt]) -> tuple[EvalResult, list[ScoredGroup]]:
    """Sample and score the held-out prompts with the weights that the engines hold now.

    The seeds are the same in every evaluation, so before and after differ by the weights alone.
    """
    groups = await parts.eval_pipeline.run(prompts, step=0)
    return summarize(groups), groups


async def run_evaluation(config: Config) -> EvalResult:
    """`herl eval`: evaluate the Hugging Face folder `model.path` on `data.eval`.

    Raises:
        ValueError: `data.eval` is empty, or bad input.
    """
    if not config.data.eval:
        raise ValueError("data.eval is empty: give the held-out rows to evaluate on")
    inputs = load_inputs(config, training=False)
    with RunFolder.create(config) as folder:
        async with open_parts(config, inputs, training=False) as parts:
            result, groups = await evaluate(parts, inputs.eval)
            restarts = parts.restarts.metrics()
        folder.log(0, result.metrics() | restarts)
        folder.log_rollouts("eval", groups)
        folder.write_json(EVALUATED, vars(result))
        logger.info(
            "%d responses: mean reward %.3f, all satisfied %.3f, %d unscored; %s",
            result.responses,
            result.reward,
            result.all_satisfied,
            result.unscored,
            folder.path / EVALUATED,
        )
    return result
