"""Conversations that cannot go on: who is named, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from herl_megatron.rollout.conversation import Conversation
from herl_megatron.rollout.pipeline import PipelineError
from herl_megatron.types import (
    GenerateRequest,
)
from tests.unit.rollout.fakes import FakeEngine, make_prompts
from tests.unit.rollout.talks import (
    ROLLOUT,
    Function,
    Speaker,
    groups_of,
    two_turns,
)


async def silent(talk: Conversation) -> None:
    pass


async def tells_first(talk: Conversation) -> None:
    talk.tell("hello")


async def says_nothing(talk: Conversation) -> None:
    await talk.generate()
    talk.tell()


async def asks_for_no_token(talk: Conversation) -> None:
    await talk.generate(max_tokens=0)


async def asks_twice_at_once(talk: Conversation) -> None:
    await asyncio.gather(talk.generate(), talk.generate())


async def fails(talk: Conversation) -> None:
    await talk.generate()
    raise KeyError("tool")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (silent, "ValueError: it never called generate"),
        (tells_first, "ValueError: `tell` takes what is said after the policy's turn"),
        (says_nothing, "ValueError: `tell` takes what is said after the policy's turn"),
        (asks_for_no_token, "ValueError: max_tokens is 0; give a number above 0"),
        (asks_twice_at_once, "ValueError: it is still drawing"),
        (fails, "KeyError: 'tool'"),
    ],
)
def test_a_function_that_fails_is_named(
    function: Function, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError) as caught:
        groups_of(function, FakeEngine(1), monkeypatch)
    where = "prompt 'q0', first samples: rollout.function own:function failed: "
    assert str(caught.value).startswith(where + said)
    assert caught.value.engine_index is None


class Second(Speaker):
    """Fails, or never ends, in the second turn of the first rollout."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    async def wait(self, requests: Sequence[GenerateRequest]) -> None:
        if requests[0].request_id.endswith("rollout0-turn1"):
            if self._how == "hang":
                await asyncio.sleep(60)
            raise ConnectionError("actor died")


async def stubborn(talk: Conversation) -> None:
    try:
        await two_turns(talk)
    except Exception as error:
        raise KeyError("hidden") from error


async def deaf(talk: Conversation) -> None:
    try:
        await two_turns(talk)
    except PipelineError:
        pass


@pytest.mark.parametrize("function", [two_turns, stubborn, deaf])
def test_an_engine_that_fails_is_named_whatever_the_function_makes_of_it(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Second("raise")
    with pytest.raises(PipelineError) as caught:
        groups_of(function, engine, monkeypatch)
    assert "first samples: engine 0 failed: ConnectionError: actor died" in str(caught.value)
    assert caught.value.engine_index == 0
    assert engine.aborted == ["step3-prompt0-rollout0-turn1"]


def test_a_conversation_has_the_time_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleeps(talk: Conversation) -> None:
        await talk.generate()
        await asyncio.sleep(60)

    rollout = ROLLOUT.model_copy(update={"timeout_s": 0.3})
    start = time.monotonic()
    for function, engine, said in (
        (two_turns, Second("hang"), r"0\.3 s \(rollout.timeout_s\), in call 2 of its engine$"),
        (sleeps, Speaker(), r"own:function gave no result within 0\.3 s \(rollout.timeout_s\)$"),
    ):
        with pytest.raises(PipelineError, match=said):
            groups_of(function, engine, monkeypatch, rollout=rollout)
    assert time.monotonic() - start < 20


def test_a_failure_elsewhere_ends_the_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def waits(talk: Conversation) -> None:
        try:
            await talk.generate()
            if talk.prompt.id == "q1":
                raise KeyError("tool")
            await asyncio.sleep(60)
        finally:
            ended.append(talk.prompt.id)

    with pytest.raises(PipelineError, match="'q1'"):
        groups_of(waits, Speaker(), monkeypatch, prompts=make_prompts(2))
    assert sorted(ended) == ["q0", "q0", "q1", "q1"]
