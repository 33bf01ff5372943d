"""A user's reward over a whole group (`scoring.group_reward`), called in a process of its own.

The rubric scores each response by itself, as ever. Then the function sees the prompt, the texts and
these scores together (`types.GroupToReward`) and gives every response a number, which becomes its
reward. Verdicts stay: hindsight still shows what the rubric says is met and unmet.

A revision is scored in its draft's place: the function is called with the group as it was, the
draft's text and score exchanged for the revision's, and the number in that place counts. So draft
and revision are measured against the same others, the group's own rewards never change, and no
revision depends on another. A response that the rubric could not score stays unscored.

Whatever the function does (hang, exit, crash, raise, return something else) costs that one call:
its responses are `Unscored` with the reason, and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from herl_megatron.config.schema import ScoringConfig
from herl_megatron.rubrics.checks import local
from herl_megatron.rubrics.checks.isolated.modules import GRACE_S, CheckModuleError, load_in
from herl_megatron.rubrics.checks.isolated.process import ChildGone, ChildProcess
from herl_megatron.rubrics.checks.isolated.rewards import REWARD_KEY, is_reward, late
from herl_megatron.rubrics.checks.isolated.wire import (
    CheckLimits,
    LoadReward,
    Reply,
    Reward,
    Said,
)
from herl_megatron.rubrics.rubric import answer_part, score_response
from herl_megatron.types import GroupToReward, Prompt, Rubric, Score, Scored, ScoredGroup, Unscored

_log = logging.getLogger(__name__)
_AGAIN_AFTER_S = 0.5
_NO_ANSWER = "answered what is no answer"
Found = list[float | str]
"""Of each response of a group a reward, or what the function did instead of giving one."""


class RubricScorer(Protocol):
    """What is needed of `rubrics.scorer.Scorer`."""

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """Hear of a response that needs a judge before its group is complete."""
        ...

    def paused_s(self) -> float:
        """Seconds that scoring has been paused so far."""
        ...


class GroupReward:
    """The function and its process; one call at a time, in a thread of its own."""

    def __init__(self, config: ScoringConfig, *, folder: str | None = None) -> None:
        limits = CheckLimits(memory_bytes=config.check_memory_bytes)
        self._load = LoadReward(config.group_reward, folder or os.getcwd(), limits)
        self._timeout_s = config.group_reward_timeout_s
        self._process = ChildProcess(limits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="group reward")
        self._closed = False
        self._counts: Counter[str] = Counter()

    def start(self) -> str:
        """Import the function; the source file of its module, "" if it has none.

        Raises:
            CheckModuleError (a ValueError): no such module or function, one that cannot be called
                with a group, or whatever the module does while it is imported.
        """
        of = (REWARD_KEY, (self._load.name,))
        return load_in(self._process, self._load, lambda found: str(found["file"]), of=of)

    async def scores(self, group: GroupToReward) -> list[Score]:
        """The group's scores with the function's numbers as rewards, in order.

        Raises:
            CheckModuleError: the function cannot be imported any more.
        """
        if not any(isinstance(score, Scored) for score in group.scores):
            return list(group.scores)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, self._call, _plain(group))
        if isinstance(found, str):
            self._counts["failures"] += 1
            _log.warning("prompt %s: %s %s", group.prompt.id, self._load.name, found)
            found = [found] * len(group.texts)
        else:
            self._counts["refused"] += sum(isinstance(one, str) for one in found)
        pairs = zip(group.scores, found, strict=True)
        return [self._rewarded(score, one) for score, one in pairs]

    def metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        counts, self._counts = self._counts, Counter()
        return {
            "scoring/group_reward_failures": float(counts["failures"]),
            "scoring/group_reward_refused": float(counts["refused"]),
        }

    def close(self) -> None:
        """End the process, also while a call waits for it."""
        self._closed = True
        self._process.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _rewarded(self, score: Score, found: float | str) -> Score:
        if not isinstance(score, Scored):
            return score
        if isinstance(found, str):
            return Unscored(f"{self._load.name} {found}", score.results)
        return replace(score, reward=found, rubric_reward=score.reward)

    def _call(self, group: GroupToReward) -> Found | str:
        """What the function gives, or what it did; a death may be the machine's doing, and is tried
        once more."""
        for again in (True, False):
            try:
                self._ensure()
                number = self._process.ask(Reward(group, self._timeout_s))
                reply = self._process.reply(number, self._timeout_s + GRACE_S)
            except ChildGone as gone:
                if self._closed:
                    return "was stopped"
                if not (gone.died and again):
                    return late(self._timeout_s) if gone.late else gone.how
                continue
            if reply.worn:
                self._process.end()
            return _read(reply, len(group.texts))
        raise AssertionError("the second attempt returns")

    def _ensure(self) -> None:
        """A process with the function, started outside of the call's limit."""
        if self._process.alive:
            return
        try:
            self.start()
        except CheckModuleError as error:
            _log.warning("%s; tried once more", error)
            time.sleep(_AGAIN_AFTER_S)
            self.start()


class RewardedScorer:
    """The scorer of training: the rubric's scores, and then the function's numbers.

    answer_after: of a text the function sees what follows it (`scoring.answer_after`).
    """

    def __init__(
        self, rubric: RubricScorer, reward: GroupReward, *, answer_after: str = ""
    ) -> None:
        self._rubric = rubric
        self._reward = reward
        self._answer_after = answer_after

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text of a whole group, in order."""
        scores = await self._rubric.score_group(prompt, texts)
        return await self._reward.scores(
            GroupToReward(prompt, tuple(map(self._answer, texts)), tuple(scores))
        )

    def of_revisions(self, group: ScoredGroup, drafts: Sequence[int]) -> RewardedScorer:
        """The scorer of a group's revisions, each in the place of its draft, the rollout of that
        index."""
        return _InPlace(self, group, drafts)

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """See `Scorer.start_judging`."""
        self._rubric.start_judging(prompt, text)

    def paused_s(self) -> float:
        """See `Scorer.paused_s`."""
        return self._rubric.paused_s()

    def _answer(self, text: str) -> str:
        return answer_part(text, self._answer_after) or ""


class _InPlace(RewardedScorer):
    def __init__(self, scorer: RewardedScorer, group: ScoredGroup, drafts: Sequence[int]) -> None:
        super().__init__(scorer._rubric, scorer._reward, answer_after=scorer._answer_after)
        self._drafts = drafts
        self._texts = tuple(self._answer(rollout.text) for rollout in group.group.rollouts)
        rubric = group.group.prompt.rubric
        self._before = tuple(_by_rubric(rubric, score) for score in group.scores)

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per revision, in order."""
        scores = await self._rubric.score_group(prompt, texts)

        async def in_place(draft: int, text: str, score: Score) -> Score:
            if not isinstance(score, Scored):
                return score
            answers = (*self._texts[:draft], self._answer(text), *self._texts[draft + 1 :])
            inside = (*self._before[:draft], score, *self._before[draft + 1 :])
            return (await self._reward.scores(GroupToReward(prompt, answers, inside)))[draft]

        triples = zip(self._drafts, texts, scores, strict=True)
        return list(await asyncio.gather(*(in_place(*triple) for triple in triples)))


async def open_group_reward(config: ScoringConfig) -> GroupReward | None:
    """The function of `scoring.group_reward`, imported; None without one. Raises as `start`."""
    if not config.group_reward:
        return None
    reward = GroupReward(config)
    try:
        await asyncio.to_thread(reward.start)
    except BaseException:
        reward.close()
        raise
    return reward


def check_group_reward(config: ScoringConfig) -> str:
    """Import the function of `scoring.group_reward` once, in a process that ends again; its file.

    Raises:
        CheckModuleError (a ValueError): as `GroupReward.start`.
    """
    reward = GroupReward(config)
    try:
        return reward.start()
    finally:
        reward.close()


def _by_rubric(rubric: Rubric, score: Score) -> Score:
    """The score before the function had its say, which its verdicts still give."""
    return score_response(rubric, score.results) if score.results else score


def _plain(group: GroupToReward) -> GroupToReward:
    """As it can be sent: parameters may be any mapping."""
    prompt = group.prompt
    criteria = tuple(replace(c, params=dict(c.params)) for c in prompt.rubric.criteria)
    rubric = replace(prompt.rubric, criteria=criteria)
    return replace(group, prompt=replace(prompt, rubric=rubric, extra=dict(prompt.extra)))


def _read(reply: Reply, responses: int) -> Found | str:
    """The answer, looked at once more: the process runs code of others."""
    if reply.said is not Said.REWARDS:
        return reply.text or _NO_ANSWER
    try:
        values: Any = json.loads(reply.text)
    except (ValueError, RecursionError):
        return _NO_ANSWER
    if not isinstance(values, list) or len(values) != responses:
        return _NO_ANSWER
    return [_one(value) for value in values]


def _one(value: object) -> float | str:
    if isinstance(value, float) and is_reward(value):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return local.plain(value[0])
    return _NO_ANSWER
