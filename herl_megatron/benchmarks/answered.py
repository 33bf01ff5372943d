"""What every benchmark is computed from: prompts with the scores of their responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from herl_megatron.types import CriterionResult, Prompt, Score, Scored, ScoredGroup


@dataclass(frozen=True)
class Answered:
    """A prompt and the scores of its responses, in order.

    loose: of each response the verdicts of its rule criteria, when the best of IFEval's eight
        variants counts; empty where nobody asked for them.
    """

    prompt: Prompt
    scores: tuple[Score, ...]
    loose: tuple[tuple[CriterionResult, ...], ...] = ()

    def __post_init__(self) -> None:
        assert len(self.loose) in (0, len(self.scores)), "loose verdicts of some responses only"

    @property
    def scored(self) -> tuple[Scored, ...]:
        """The responses that have a score; only they enter a mean."""
        return tuple(score for score in self.scores if isinstance(score, Scored))


def answered_groups(groups: Iterable[ScoredGroup]) -> list[Answered]:
    """The policy's own responses of each group; revisions are not among them."""
    return [Answered(group.group.prompt, tuple(group.scores)) for group in groups]


def per_prompt(
    answered: Iterable[Answered], value: Callable[[Prompt, Scored], float | None]
) -> list[tuple[Prompt, float]]:
    """The mean of `value` over the scored responses of each prompt; None counts as no value, and a
    prompt without any is left out."""
    found = []
    for one in answered:
        values = [v for score in one.scored if (v := value(one.prompt, score)) is not None]
        if values:
            found.append((one.prompt, mean(values)))
    return found


def mean(values: Sequence[float]) -> float:
    """The plain mean; of at least one value."""
    return sum(values) / len(values)


def all_met(_: Prompt, score: Scored) -> float:
    """1 where the response satisfies something and misses nothing, else 0."""
    return float(bool(score.satisfied) and not score.unmet)


def rubric_reward(_: Prompt, score: Scored) -> float:
    """The reward of the rubric, whatever a group's reward made of it."""
    return score.reward if score.rubric_reward is None else score.rubric_reward
