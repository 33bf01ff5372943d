"""A user's reward over a whole group: what it sees, what becomes of its numbers and misdeeds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from herl_megatron.config.schema import HindsightConfig, RolloutConfig, ScoringConfig
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rubrics.checks.isolated.modules import CheckModuleError
from herl_megatron.rubrics.checks.isolated.wire import Reply, Said
from herl_megatron.rubrics.group_reward import GroupReward, RewardedScorer, _read
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    GroupToReward,
    Message,
    Prompt,
    Rubric,
    Score,
    Scored,
    Unscored,
    Verdict,
)
from tests.unit.hindsight.groups import make_group
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts

PROMPT = Prompt("p", (Message("user", "Write."),), Rubric((Criterion("c", "rule", "x"),)))
SOURCE = '''
import ctypes, math, os, signal, sys, time
from collections.abc import Sequence
import numpy
from herl_megatron.types import GroupToReward, Scored, Unscored

CALLS = []

def does(group: GroupToReward):
    """What the prompt says."""
    found = {}
    lines = group.prompt.messages[-1].content.splitlines()
    exec("def body(group):\\n" + "".join(f"    {line}\\n" for line in lines), globals(), found)
    return found["body"](group)

def shorter_wins(group: GroupToReward) -> list[float | None]:
    mean = sum(map(len, group.texts)) / len(group.texts)
    return [
        score.reward - 0.5 * len(text) / mean if isinstance(score, Scored) else None
        for text, score in zip(group.texts, group.scores, strict=True)
    ]

async def later(group):
    return []

def nothing():
    return []

NUMBER = 1
'''


def module(folder: Path) -> str:
    """Written as a name of its own, as a module is imported once in a process."""
    (folder / "my_rewards.py").write_text(SOURCE, encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def does(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GroupReward]:
    """One process for many tests; what one of them does to it costs no other."""
    config = ScoringConfig(
        group_reward="my_rewards:does", group_reward_timeout_s=2.0, check_memory_bytes=256 << 20
    )
    reward = GroupReward(config, folder=module(tmp_path_factory.mktemp("does")))
    reward.start()
    yield reward
    reward.close()


@pytest.fixture(scope="module")
def shorter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GroupReward]:
    config = ScoringConfig(group_reward="my_rewards:shorter_wins")
    reward = GroupReward(config, folder=module(tmp_path_factory.mktemp("shorter")))
    reward.start()
    yield reward
    reward.close()


def scored(reward: float) -> Scored:
    met = reward == 1.0
    verdict = Verdict.FOLLOWED if met else Verdict.NOT_FOLLOWED
    results = (CriterionResult("c", verdict),)
    return Scored(reward, results, ("c",) if met else (), () if met else ("c",))


def ask(reward: GroupReward, body: str, scores: Sequence[Score] = (scored(1.0),)) -> list[Score]:
    prompt = Prompt("p", (Message("user", body),), PROMPT.rubric)
    texts = tuple(f"text {i}" for i in range(len(scores)))
    return asyncio.run(reward.scores(GroupToReward(prompt, texts, tuple(scores))))


class TextScorer(FakeScorer):
    """The rubric: 1 for a text with an `a` in it, else 0; a text with a `?` has no score."""

    def score(self, text: str) -> Score:
        return Unscored("asked") if "?" in text else scored(float("a" in text))


def test_each_response_gets_its_number_and_keeps_its_verdicts(shorter: GroupReward) -> None:
    """Lengths 2, 4 and 6, mean 4: 1 - 0.25, 0 - 0.5, 1 - 0.75; none where the rubric has none."""
    scorer = RewardedScorer(TextScorer(), shorter)
    found = asyncio.run(scorer.score_group(PROMPT, ["ba", "bbbb", "bbbbba"]))
    assert [score.reward for score in found if isinstance(score, Scored)] == [0.75, -0.5, 0.25]
    assert [s.rubric_reward for s in found if isinstance(s, Scored)] == [1.0, 0.0, 1.0]
    assert [s.unmet for s in found if isinstance(s, Scored)] == [(), ("c",), ()]
    found = asyncio.run(scorer.score_group(PROMPT, ["ba?", "bbbbba"]))
    assert found[0] == Unscored("asked")
    assert isinstance(found[1], Scored) and found[1].reward == 1.0 - 0.5 * 6 / 4.5


def test_it_sees_answers_alone(shorter: GroupReward) -> None:
    """`hm</think>` is no part of the 2 and 6 characters; without an answer there are none."""
    scorer = RewardedScorer(TextScorer(), shorter, answer_after="</think>")
    texts = ["hm</think>ba", "hm</think>bbbbba", "hm"]
    found = asyncio.run(scorer.score_group(PROMPT, texts))
    rewards = [score.reward for score in found if isinstance(score, Scored)]
    assert rewards == [1 - 0.5 * 2 / (8 / 3), 1 - 0.5 * 6 / (8 / 3), 0.0]


def test_a_revision_is_scored_in_the_place_of_its_draft(shorter: GroupReward) -> None:
    """Texts t0, t1, t2 of 2 characters each. A revision of 8 for t1: mean 4, so 1 - 1; one of 2:
    mean 2, so 1 - 0.5. The others' numbers are as they were, and the third has no score."""
    scorer = RewardedScorer(TextScorer(), shorter)
    group = make_group([0.0, 0.0, 0.0], prompt=PROMPT)
    texts = ["bbbbbbba", "ba", "?"]
    found = asyncio.run(scorer.of_revisions(group, [1, 1, 2]).score_group(PROMPT, texts))
    assert [s.reward for s in found[:2] if isinstance(s, Scored)] == [0.0, 0.5]
    assert found[2] == Unscored("asked")


def test_others_that_got_no_number_are_shown_as_the_rubric_scored_them(does: GroupReward) -> None:
    """The first response was refused by the function, the second has another reward than the
    rubric's: in a revision's group both are what the rubric says."""
    refused = Unscored("my_rewards:does gave None", scored(1.0).results)
    changed = Scored(7.0, scored(0.0).results, (), ("c",), rubric_reward=0.0)
    body = "return [s.reward for s in group.scores[:2]] + [sum(s.reward for s in group.scores)]"
    prompt = Prompt("p", (Message("user", body),), PROMPT.rubric)
    group = make_group([0.0, 0.0, 0.0], prompt=prompt)
    object.__setattr__(group, "scores", (refused, changed, scored(0.0)))
    scorer = RewardedScorer(TextScorer(), does)
    (found,) = asyncio.run(scorer.of_revisions(group, [2]).score_group(prompt, ["a"]))
    assert isinstance(found, Scored) and found.reward == 1.0 + 0.0 + 1.0


NO_NUMBERS = [
    ("None", "my_rewards:does gave None (NoneType)"),
    ("Unscored('too short')", "my_rewards:does said: too short"),
    ("math.nan", "my_rewards:does gave nan (float), which is no finite number"),
    ("-math.inf", "my_rewards:does gave -inf (float), which is no finite number"),
    ("1e39", "my_rewards:does gave 1e+39 (float), which is no finite number"),
    ("True", "my_rewards:does gave True (bool), which is no finite number"),
    ("'0.5'", "my_rewards:does gave '0.5' (str), which is no finite number"),
    ("numpy.float32(1)", "(numpy.float32), which is no finite number"),
]


@pytest.mark.parametrize(("value", "said"), NO_NUMBERS)
def test_what_is_no_number_unscores_one_response(does: GroupReward, value: str, said: str) -> None:
    does.metrics()
    first, second = ask(does, f"return [{value}, 2]", [scored(1.0), scored(0.0)])
    assert isinstance(first, Unscored) and first.reason.endswith(said)
    assert first.results == scored(1.0).results
    assert isinstance(second, Scored) and second.reward == 2.0
    assert does.metrics() == {
        "scoring/group_reward_failures": 0.0, "scoring/group_reward_refused": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("value", [0.1 + 0.2, -1e38, 5e-324, 0, -3, 1 << 60])
def test_a_number_comes_to_the_last_bit(does: GroupReward, value: float) -> None:
    (found,) = ask(does, f"return ({value!r},)")
    assert isinstance(found, Scored) and repr(found.reward) == repr(float(value))


ENDLESS = "while True:\n    try:\n        time.sleep(9)\n    except BaseException:\n        pass"
LATE = "gave nothing within 2 s (scoring.group_reward_timeout_s)"
MISDEEDS = [
    ("return 1.0", "returned 1.0 (float); it must return a list"),
    ("return '12'", "returned '12' (str); it must return a list"),
    ("return {0: 1.0}", "(dict); it must return a list"),
    ("return numpy.zeros(2)", "(numpy.ndarray); it must return a list"),
    ("return [1.0]", "returned 1 rewards for 2 responses"),
    ("return []", "returned 0 rewards for 2 responses"),
    ("raise ValueError('no')", "raised ValueError: no at "),
    ("sys.exit(3)", "raised SystemExit: 3"),
    ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    ("return [Unscored(group), 1][::-1] + [1 / 0]", "raised ZeroDivisionError"),
    ("os._exit(0)", "ended its process (with exit code 0)"),
    ("os.abort()", "ended its process (by SIGABRT)"),
    ("ctypes.string_at(0)", "ended its process (by SIGSEGV)"),
    ("time.sleep(9)", LATE),
    (ENDLESS, LATE),
    ("try:\n    bytearray(100 << 30)\nexcept Exception:\n    pass\nreturn [1.0, 1.0]",
     "took more than 268,435,456 bytes of memory"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), MISDEEDS)
def test_what_a_function_does_costs_its_call_alone(does: GroupReward, body: str, said: str) -> None:
    does.metrics()
    found = ask(does, body, [scored(1.0), scored(0.0)])
    for score in found:
        assert isinstance(score, Unscored)
        assert score.reason.startswith("my_rewards:does ") and said in score.reason
    (good,) = ask(does, "return [0.5]")
    assert isinstance(good, Scored) and good.reward == 0.5
    assert does.metrics()["scoring/group_reward_failures"] == 1.0
    assert does.metrics()["scoring/group_reward_failures"] == 0.0


def test_its_process_is_kept_between_calls_and_a_death_is_tried_once_more(
    does: GroupReward, tmp_path: Path
) -> None:
    asked = [ask(does, "CALLS.append(1)\nreturn [len(CALLS)]") for _ in range(3)]
    calls = [score.reward for (score,) in asked if isinstance(score, Scored)]
    assert calls == [calls[0], calls[0] + 1, calls[0] + 2]
    seen = tmp_path / "seen"
    body = f"if not os.path.exists({str(seen)!r}):\n    open({str(seen)!r}, 'w')\n    os.abort()"
    (found,) = ask(does, f"{body}\nreturn [7.0]")
    assert isinstance(found, Scored) and found.reward == 7.0


def test_a_group_without_scores_asks_nobody(does: GroupReward) -> None:
    found = ask(does, "raise SystemExit", [Unscored("a"), Unscored("b")])
    assert found == [Unscored("a"), Unscored("b")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_rewards:f", "cannot import 'no_such_rewards'.*PYTHONPATH"),
        ("my_rewards:shorter_win", "has no 'shorter_win'; did you mean 'shorter_wins'"),
        ("my_rewards:NUMBER", "is a int, which cannot be called"),
        ("my_rewards:later", "is an async function; write `def later"),
        ("my_rewards:nothing", r"is called with \(group\) but takes \(\)"),
        ("two:f", "has no 'other', which two:f needs"),
        ("raises:f", "importing 'raises' failed at .*raises.py:1: ZeroDivisionError"),
        ("exits:f", "importing 'exits' failed.* SystemExit: 3"),
        ("dies:f", r"importing 'dies' ended its process \(with exit code 4\)"),
    ],
)
def test_what_cannot_be_loaded_is_one_message(tmp_path: Path, name: str, said: str) -> None:
    for file, text in (("raises", "1 / 0"), ("exits", "raise SystemExit(3)"),
                       ("two", "def f(group, other: float): ..."),
                       ("dies", "import os; os._exit(4)")):  # fmt: skip
        (tmp_path / f"{file}.py").write_text(text)
    reward = GroupReward(ScoringConfig(group_reward=name), folder=module(tmp_path))
    try:
        with pytest.raises(CheckModuleError, match=f"^scoring.group_reward.*{said}") as error:
            reward.start()
        assert str(error.value).count("scoring.group_reward: ") <= 1
    finally:
        reward.close()


def test_closing_ends_a_call_that_waits(tmp_path: Path) -> None:
    config = ScoringConfig(group_reward="my_rewards:does", group_reward_timeout_s=600)
    reward = GroupReward(config, folder=module(tmp_path))
    reward.start()
    threading.Timer(0.5, reward.close).start()
    started = time.monotonic()
    (found,) = ask(reward, "time.sleep(600)")
    assert isinstance(found, Unscored) and found.reason == "my_rewards:does was stopped"
    assert time.monotonic() - started < 60


def test_the_answer_is_looked_at_once_more() -> None:
    for text in ("", "1", "[1.0]", "[1.0, 2]", '[1.0, "x"]', "[1.0, []]", "[1.0, [2]]",
                 "[1.0, NaN]", "[1.0, 1e400]", "[" * 100_000):  # fmt: skip
        found = _read(Reply(0, Said.REWARDS, False, text), 2)
        one = found if isinstance(found, str) else found[1]
        assert one == "answered what is no answer", text
    assert _read(Reply(0, Said.REWARDS, False, '[1.5, ["no"]]'), 2) == [1.5, "no"]
    assert _read(Reply(0, Said.PROBLEM, False, "raised X"), 2) == "raised X"


def test_through_the_stream_rewards_are_the_functions_in_any_order(shorter: GroupReward) -> None:
    """Every reward worked out from texts and rubric rewards; a revision in its draft's place."""

    def run(delay_seed: int | None, *, streamed: bool) -> list[tuple[float, ...]]:
        scorer = RewardedScorer(FakeScorer(delay_seed), shorter)
        rollout = RolloutConfig(group_size=4, max_response_tokens=8, streamed=streamed)
        hindsight = HindsightConfig(max_experiences=2, revisions_per_experience=2)
        pipeline = RolloutPipeline(
            [FakeEngine(delay_seed)], scorer, CharTokenizer(), rollout,
            open_stage(hindsight, rollout, max_tokens=10_000), seed=11,
        )  # fmt: skip
        groups = asyncio.run(pipeline.run(make_prompts(6), step=3))
        assert sum(len(group.revisions) for group in groups) >= 6
        rewards = []
        for group in groups:
            texts = [rollout.text for rollout in group.group.rollouts]
            for index, score in enumerate(group.scores):
                rewards.append(_expected(score, texts, index))
            for revision in group.revisions:
                draft = revision.experience.rollout_index
                inside = [*texts[:draft], revision.rollout.text, *texts[draft + 1 :]]
                rewards.append(_expected(revision.score, inside, draft))
        return [reward for reward in rewards if reward]

    expected = run(None, streamed=True)
    assert len(expected) >= 30
    assert run(5, streamed=True) == expected and run(6, streamed=False) == expected


def _expected(score: Score, texts: Sequence[str], place: int) -> tuple[float, ...]:
    """The reward, after a look at it; nothing of what the rubric could not score."""
    by_rubric = FakeScorer().score(texts[place])
    if isinstance(by_rubric, Unscored):
        assert score == by_rubric
        return ()
    mean = sum(map(len, texts)) / len(texts)
    assert isinstance(score, Scored) and score.rubric_reward == by_rubric.reward
    assert score.reward == by_rubric.reward - 0.5 * len(texts[place]) / mean
    assert (score.satisfied, score.unmet) == (by_rubric.satisfied, by_rubric.unmet)
    return (score.reward,)
