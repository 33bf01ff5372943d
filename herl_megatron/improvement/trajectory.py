"""Self-improvement at test time: drafts and revisions, which is best, and what that cost.

A trajectory starts from a first sample and revises the best response so far, round by round, until
the best one misses nothing. Its baseline is best-of-N: the best of independent first samples, the
first of them the trajectory's own, which also ends as soon as the best one misses nothing. Both use
the same scorer to choose, which is what makes best-of-N strong. A response without a score is never
the best, is never revised and stands for no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from herl_megatron.hindsight.select import REWARD_TOLERANCE
from herl_megatron.types import FinishReason, Score, Scored


@dataclass(frozen=True)
class Attempt:
    """One sampled and scored response.

    round: 0 for the first sample; in a trajectory the round that drew it, in best-of-N its number.
    parent: the attempt of the trajectory that it revises; None for a sample of the plain prompt,
        also in a later round, where there was no draft that could be revised.
    tokens, prompt_tokens: sampled, and read for it.
    """

    round: int
    parent: int | None
    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: FinishReason
    score: Score


@dataclass(frozen=True)
class Trajectory:
    """The attempts of one prompt in the order of their rounds; `index` counts its trajectories."""

    prompt_id: str
    index: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Outcome:
    """What the best responses of some prompts are worth, and what they cost together.

    reward, all_satisfied: means over those that have a scored response (`answered`), None without.
    """

    reward: float | None
    all_satisfied: float | None
    answered: int
    samples: int
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class BestOfN:
    """Best-of-N with this N; what it drew is in its outcome, fewer where it could stop early."""

    n: int
    outcome: Outcome


@dataclass(frozen=True)
class RoundResult:
    """The trajectories after a round, and the baseline at equal cost.

    revisions, redrawn: attempts of this round that revise a draft, and fresh samples where there
        was none to revise; accepted: those that became the best; unscored: those without a score.
    same_samples: N is the most samples that a trajectory has drawn.
    same_tokens: the smallest N that samples at least as many tokens as the trajectories did.
    """

    round: int
    outcome: Outcome
    revisions: int
    redrawn: int
    accepted: int
    unscored: int
    same_samples: BestOfN | None
    same_tokens: BestOfN | None


def best_attempt(attempts: Sequence[Attempt]) -> int | None:
    """Number of the best response: the highest reward, the earliest among equals; None unscored."""
    best: int | None = None
    top = 0.0
    for number, attempt in enumerate(attempts):
        if isinstance(attempt.score, Scored):
            reward = attempt.score.reward
            if best is None or reward > top + REWARD_TOLERANCE:
                best, top = number, reward
    return best


def is_done(attempts: Sequence[Attempt]) -> bool:
    """Whether the best response misses no criterion: nothing is left to revise."""
    score = _best_score(attempts)
    return score is not None and not score.unmet


def accepted(attempts: Sequence[Attempt], number: int) -> bool:
    """Whether attempt `number`, not the first, became the best of its trajectory when it came."""
    return number > 0 and best_attempt(attempts[: number + 1]) == number


def outcome(drawn: Sequence[Sequence[Attempt]]) -> Outcome:
    """Average the best response of each prompt (or trajectory) and add up what was drawn."""
    scores = [score for attempts in drawn if (score := _best_score(attempts)) is not None]
    whole = [float(bool(score.satisfied) and not score.unmet) for score in scores]
    return Outcome(
        reward=fmean(score.reward for score in scores) if scores else None,
        all_satisfied=fmean(whole) if whole else None,
        answered=len(scores),
        samples=sum(len(attempts) for attempts in drawn),
        tokens=sum(attempt.tokens for attempts in drawn for attempt in attempts),
        prompt_tokens=sum(attempt.prompt_tokens for attempts in drawn for attempt in attempts),
    )


def best_of_n(samples: Sequence[Sequence[Attempt]], n: int) -> BestOfN:
    """Best-of-N over each prompt's samples, in their order, ending early where it may."""
    return BestOfN(n, outcome([_until_done(drawn[:n]) for drawn in samples]))


def at_least_tokens(samples: Sequence[Sequence[Attempt]], tokens: int) -> BestOfN:
    """Best-of-N with the smallest N that samples `tokens`, or all samples if they are fewer."""
    most = max(map(len, samples))
    for n in range(1, most):
        result = best_of_n(samples, n)
        if result.outcome.tokens >= tokens:
            return result
    return best_of_n(samples, most)


def round_results(
    trajectories: Sequence[Trajectory],
    samples: Sequence[Sequence[Attempt]] | None,
    *,
    rounds: int,
) -> list[RoundResult]:
    """Rounds 0 to `rounds`; `samples` are each trajectory's best-of-N samples, None without."""
    results = []
    for number in range(rounds + 1):
        chains = [[a for a in t.attempts if a.round <= number] for t in trajectories]
        reached = outcome(chains)
        drawn = [chain[-1] for chain in chains if chain[-1].round == number]
        became_best = sum(
            chain[-1].round == number and accepted(chain, len(chain) - 1) for chain in chains
        )
        results.append(
            RoundResult(
                round=number,
                outcome=reached,
                revisions=sum(attempt.parent is not None for attempt in drawn),
                redrawn=sum(attempt.parent is None for attempt in drawn) if number else 0,
                accepted=became_best,
                unscored=sum(not isinstance(attempt.score, Scored) for attempt in drawn),
                same_samples=best_of_n(samples, number + 1) if samples else None,
                same_tokens=at_least_tokens(samples, reached.tokens) if samples else None,
            )
        )
    return results


def _best_score(attempts: Sequence[Attempt]) -> Scored | None:
    number = best_attempt(attempts)
    score = None if number is None else attempts[number].score
    return score if isinstance(score, Scored) else None


def _until_done(samples: Sequence[Attempt]) -> Sequence[Attempt]:
    """The samples up to the first that leaves nothing to improve."""
    for n in range(1, len(samples)):
        if is_done(samples[:n]):
            return samples[:n]
    return samples
