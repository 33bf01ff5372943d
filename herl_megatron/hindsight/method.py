"""What a hindsight method is: what a scored group is asked for next, and which rows a step has.

A method is a class that derives from `HindsightMethod`; `herl.HeRL` and `hir.HiR` are two, and
`hindsight.method: my_methods:MyMethod` names one from outside. All calls are made in the driver's
process, by:

| when | method | by |
|---|---|---|
| before anything starts | `problems`, `check_prompts` | `config.rules.hindsight`, `run.inputs` |
| a job is made of a prompt | `check_prompt` | `rollout.pipeline` |
| a group is scored, others still decode | `propose` | `rollout.hindsight_stage` |
| all groups of a step are there | `join_step`, which calls `join` | `batching.rows` |
| a plan is made | `samples`, `rows_added` | `plan.timing`, `plan.judge` |

An object is made wherever one is needed, so it keeps nothing from call to call. Groups come to
`propose` in any order and may come again after a resume: what is random in a method is drawn from
the seed that it is given, which follows from the run's seed, the step and the prompt alone.
Neither call may wait for anything: the engines' answers are handled by the same process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.hindsight.bonus import bonus_rewards
from herl_megatron.hindsight.experience import PromptTokenizer
from herl_megatron.hindsight.join import join_revisions
from herl_megatron.hindsight.revision_prompts import plain_text
from herl_megatron.rubrics.rubric import answer_part
from herl_megatron.types import (
    HindsightExperience,
    Message,
    Prompt,
    Replay,
    RowOrigin,
    Scored,
    ScoredGroup,
)

REVISION_KEYS = frozenset({"temperature", "top_p", "train_context"})
"""Of the section `hindsight`: read wherever a method's revisions are drawn and trained on."""
JOIN_KEYS = frozenset(
    {"alpha", "clip_negative", "accept", "join_cut", "replace", "replace_top_n", "no_qualified"}
)
"""Read by `HindsightMethod.join`."""


@dataclass(frozen=True)
class ProposalContext:
    """What a method is told beside the group.

    max_tokens: of the longest context that it may propose (`data.max_experience_tokens`).
    answer_after: what of a response is shown follows this (`scoring.answer_after`).
    seed: of what it draws at random, one per (run, step, prompt).
    """

    tokenizer: PromptTokenizer
    max_tokens: int
    answer_after: str
    step: int
    seed: int

    def draft(self, group: ScoredGroup, rollout: int) -> str:
        """The answer of a rollout as a revision prompt shows it."""
        return answer_part(group.group.rollouts[rollout].text, self.answer_after) or ""

    def experience(
        self, group: ScoredGroup, rollout: int, messages: Sequence[Message]
    ) -> HindsightExperience | None:
        """The request for one revision of a scored rollout, asked for by `messages`; None where
        these are longer than `max_tokens`, which is never cut."""
        score = group.scores[rollout]
        assert isinstance(score, Scored), f"rollout {rollout} has no score to learn from"
        ids = self.tokenizer.prompt_ids(messages)
        if len(ids) > self.max_tokens:
            return None
        text = plain_text(messages)
        return HindsightExperience(rollout, text, ids, score.satisfied, score.unmet)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a method makes of one scored group.

    experiences: one revision is drawn from each; the same one may be there
        `HindsightMethod.revisions_per_rollout` times.
    replays: responses that are there, to be trained on in another context.
    too_long, impossible: what was left out, for the metrics (`ScoredGroup`).
    """

    experiences: tuple[HindsightExperience, ...] = ()
    replays: tuple[Replay, ...] = ()
    too_long: int = 0
    impossible: int = 0


@dataclass(frozen=True)
class Join:
    """Which rows a group has in training.

    bonuses: one per rollout, added to its reward.
    origins: one per row, in order.
    """

    bonuses: tuple[float, ...]
    origins: tuple[RowOrigin, ...]


class HindsightMethod:
    """Derive from it and write `propose`; the rest has defaults, which are HeRL's."""

    keys: ClassVar[frozenset[str]] = REVISION_KEYS | JOIN_KEYS
    """Of the section `hindsight`: those that it reads besides `known_methods.SHARED_KEYS`. A value
    for any other is said to be without effect."""
    samples: ClassVar[bool] = True
    """Whether it may propose revisions, which cost sampling and scoring."""
    gives_rewards: ClassVar[bool] = False
    """Whether its rows have rewards that it gives itself, in the rubric's scale: these do not
    compare with those of `scoring.group_reward`."""

    def __init__(self, config: HindsightConfig) -> None:
        self.config = config

    @property
    def revisions_per_rollout(self) -> int:
        """At most so many experiences of one rollout are proposed; the seeds of revisions count by
        it."""
        return 1

    def most_revisions(self, group_size: int) -> int:
        """At most so many revisions are drawn for one group."""
        return group_size * self.revisions_per_rollout

    @property
    def rows_added(self) -> int | None:
        """At most so many rows more than rollouts does a group get, for `herl plan`; None if that
        is as many as it has revisions."""
        return self.config.replace_top_n if self.config.replace == "append" else 0

    def problems(self, rollout: RolloutConfig) -> Iterator[str]:
        """What is wrong between its keys, each with the values and what to do."""
        limit, replace = self.config.replace_top_n, self.config.replace
        if limit is not None and replace != "append" and limit > rollout.group_size:
            yield (
                f"hindsight.replace_top_n is {limit}, above rollout.group_size"
                f" {rollout.group_size}; lower it or use hindsight.replace=append"
            )
        most = self.most_revisions(rollout.group_size)
        if self.config.accept == "all" and limit is not None and limit < most:
            yield (
                f"hindsight.accept is 'all' but hindsight.replace_top_n {limit} would leave out"
                f" some of up to {most} revisions of a group; set replace_top_n to null"
            )
        elif self.config.accept == "all" and replace != "append" and most > rollout.group_size:
            yield (
                f"hindsight.accept is 'all' but hindsight.replace {replace!r} has places for"
                f" {rollout.group_size} (rollout.group_size) of up to {most} revisions of a group;"
                " use hindsight.replace=append"
            )

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise ValueError, naming the prompt, for one that it can do nothing with."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """The same of all rows of `data.train`."""
        for prompt in prompts:
            self.check_prompt(prompt)

    def propose(self, group: ScoredGroup, context: ProposalContext) -> Proposal:
        """What is to be revised or replayed of one group, which has no revisions yet."""
        raise NotImplementedError(f"{type(self).__name__} has no `propose`")

    def join(self, group: ScoredGroup, seed: int) -> Join:
        """The rows of one group with its scored revisions: bonus and join as HeRL's, and then all
        replays."""
        bonuses = bonus_rewards(group, self.config)
        rows = join_revisions(group, bonuses, self.config, seed)
        return Join(bonuses, rows + replay_rows(group))

    def join_step(self, groups: Sequence[ScoredGroup], seeds: Sequence[int]) -> Sequence[Join]:
        """The rows of a step, one `Join` per group: for methods that choose over the whole step
        (HiR as published ranks a batch's failures together). seeds: one per group."""
        return [self.join(group, seed) for group, seed in zip(groups, seeds, strict=True)]


def replay_rows(group: ScoredGroup) -> tuple[RowOrigin, ...]:
    """A row for each replay of a group, in order."""
    return tuple(
        RowOrigin(replay.rollout_index, replay_index=number)
        for number, replay in enumerate(group.replays)
    )


def plain_join(group: ScoredGroup) -> Join:
    """The rollouts alone: what a step trains on without hindsight."""
    count = len(group.scores)
    return Join((0.0,) * count, tuple(RowOrigin(index) for index in range(count)))


def check_proposal(proposal: Proposal, group: ScoredGroup, method: HindsightMethod) -> None:
    """Raise ValueError where a proposal, maybe from outside, cannot be drawn or trained on."""
    where = f"{type(method).__name__}.propose, prompt {group.group.prompt.id!r}"
    if not isinstance(proposal, Proposal):
        raise ValueError(f"{where}: gave a {type(proposal).__name__}; return a Proposal")
    asked = [experience.rollout_index for experience in proposal.experiences]
    for rollout in {*asked, *(replay.rollout_index for replay in proposal.replays)}:
        _check_index(where, "rollout", rollout, len(group.scores))
        if rollout in asked and not isinstance(group.scores[rollout], Scored):
            raise ValueError(f"{where}: rollout {rollout} has no score, so nothing to revise")
        if asked.count(rollout) > method.revisions_per_rollout:
            raise ValueError(
                f"{where}: asks for {asked.count(rollout)} revisions of rollout {rollout}, but its"
                f" revisions_per_rollout is {method.revisions_per_rollout}; raise that"
            )
    for replay in proposal.replays:
        if not math.isfinite(replay.reward):
            raise ValueError(f"{where}: a replay's reward is {replay.reward}; give a number")


def check_joins(
    joins: Sequence[Join], groups: Sequence[ScoredGroup], method: HindsightMethod
) -> None:
    """Raise ValueError where rows, maybe from outside, have no source or no finite bonus."""
    name = f"{type(method).__name__}.join_step"
    if len(joins) != len(groups):
        raise ValueError(f"{name}: gave {len(joins)} joins for {len(groups)} groups")
    for join, group in zip(joins, groups, strict=True):
        where = f"{name}, prompt {group.group.prompt.id!r}"
        if len(join.bonuses) != len(group.scores):
            raise ValueError(f"{where}: {len(join.bonuses)} bonuses, {len(group.scores)} rollouts")
        if not all(map(math.isfinite, join.bonuses)):
            raise ValueError(f"{where}: bonuses {join.bonuses} are not all finite numbers")
        for origin in join.origins:
            _check_index(where, "rollout", origin.rollout_index, len(group.scores))
            _check_index(where, "revision", origin.revision_index, len(group.revisions))
            _check_index(where, "replay", origin.replay_index, len(group.replays))


def _check_index(where: str, what: str, index: int | None, count: int) -> None:
    if index is not None and not 0 <= index < count:
        raise ValueError(f"{where}: names {what} {index}, of {count}")
