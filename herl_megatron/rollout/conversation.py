"""A response of several turns, as `rollout.function` draws it.

The function is a user's own coroutine. It is called once per rollout, in the driver's process, with
a `Conversation` that holds the prompt, and lets the policy speak (`generate`) and be told something
(`tell`) in turn:

    async def two_turns(talk: Conversation) -> None:
        await talk.generate()
        talk.tell("Check your answer and write it once more.")
        await talk.generate()

What comes out is one response: the tokens of all turns in order, each drawn with those before it as
context, so that the log-probs which the engine reports are those of the very context that the row
is trained in. What the policy was told is context: not trained on, and in no mean. The text that is
scored, and that a revision prompt shows as the draft, is the policy's last turn.

The seed of call number n follows from (run seed, step, prompt id, index of the rollout, n), calls
being numbered as they are made. All turns together have `rollout.max_response_tokens`, what is told
included; a call beyond that raises `ConversationFull`, which the function need not catch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from herl_megatron.rollout.pipeline_run import Tokenizer
from herl_megatron.types import (
    BoolArray,
    Completion,
    FinishReason,
    IntArray,
    Message,
    Prompt,
    Rollout,
    Turn,
)


class ConversationFull(Exception):
    """No token is left for another turn: the response ends here, as one cut at the limit."""


@dataclass(frozen=True)
class Drawn:
    """What the policy said in one call. `finish_reason` is `length` where the limit cut it."""

    text: str
    tokens: int
    finish_reason: FinishReason


class Draw(Protocol):
    """How a conversation asks its engine."""

    def __call__(self, context: IntArray, *, max_tokens: int, call: int) -> Awaitable[Completion]:
        """What follows `context`, `[tokens]`; `call` is the number of the call."""
        ...


class Decoder(Protocol):
    """What `rollout_of` needs of a tokenizer."""

    def decode(self, ids: IntArray) -> str:
        """Text without special tokens."""
        ...


class Conversation:
    """One response in the making. `prompt` is the row, with its messages and its rubric."""

    def __init__(
        self,
        prompt: Prompt,
        prompt_token_ids: IntArray,
        tokenizer: Tokenizer,
        draw: Draw,
        *,
        max_tokens: int,
    ) -> None:
        self.prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._tokenizer = tokenizer
        self._draw = draw
        self._max_tokens = max_tokens
        self._calls = 0
        self._parts: list[Completion | IntArray] = []
        """In order: what was drawn, and ids of what was told."""
        self._failure: BaseException | None = None
        self._full = False
        self._speaking = False

    @property
    def left_tokens(self) -> int:
        """Tokens that are left for all that comes."""
        return self._max_tokens - sum(len(_ids(part)) for part in self._parts)

    @property
    def doing(self) -> str:
        """What it waits for, for an error's end."""
        return f", in call {self._calls} of its engine" if self._speaking else ""

    async def generate(self, *, max_tokens: int | None = None) -> Drawn:
        """Let the policy take its next turn.

        max_tokens: of this turn, if fewer than are left.

        Raises:
            ConversationFull: nothing is left.
            ValueError: `max_tokens` is not above 0.
        """
        self._require_room(1)
        context = np.concatenate([self._prompt_token_ids, *map(_ids, self._parts)])
        answer = await self._call(context, max_tokens, limit=self.left_tokens)
        self._parts.append(answer)
        return self._said(answer)

    async def aside(
        self, context: Sequence[Message] | IntArray, *, max_tokens: int | None = None
    ) -> Drawn:
        """What the policy says to something else, messages or token ids `[context]`: to plan, judge
        or summarise. It is no part of the response and is not trained on.

        max_tokens: as many as a response has, if not given.
        """
        ids = context if isinstance(context, np.ndarray) else self._tokenizer.prompt_ids(context)
        return self._said(await self._call(ids, max_tokens, limit=self._max_tokens))

    def tell(self, *said: str | Message) -> None:
        """Close the policy's turn and open its next one after these messages, a text being the
        user's, in the words of the chat template.

        Raises:
            ConversationFull: with them no token is left for an answer.
            ValueError: nothing is said, or the chat template cannot say it here.
        """
        messages = [Message("user", one) if isinstance(one, str) else one for one in said]
        last = self._parts[-1] if self._parts else None
        if not messages or not isinstance(last, Completion):
            raise ValueError(
                "`tell` takes what is said after the policy's turn; call `generate` before it, and"
                " say all at once"
            )
        ended = last.finish_reason == "stop"
        self.tell_ids(self._tokenizer.reply_ids(messages, ended=ended))

    def tell_ids(self, ids: IntArray) -> None:
        """As `tell`, by token ids `[told]`, int32: for tools with a form of their own, and whatever
        else the chat template has no words for, such as how an answer must begin."""
        self._require_room(len(ids) + 1)
        self._parts.append(np.asarray(ids, np.int32))

    def response(self, request_id: str) -> Completion:
        """All of it as one response. What was told last, and not answered, is left out.

        Raises:
            ValueError: the policy never said a word, or its weights changed on the way.
        """
        self.raise_failure()
        while self._parts and not isinstance(self._parts[-1], Completion):
            self._parts.pop()
        turns = [part for part in self._parts if isinstance(part, Completion)]
        if not turns:
            raise ValueError("it never called generate, so there is no response")
        assert len({turn.weight_version for turn in turns}) == 1, "weights changed between turns"
        told = len(turns) < len(self._parts)
        flags = [np.full(len(_ids(p)), isinstance(p, Completion)) for p in self._parts]
        return Completion(
            request_id=request_id,
            token_ids=np.concatenate([_ids(part) for part in self._parts]),
            log_probs=np.concatenate([turn.log_probs for turn in turns]),
            finish_reason="length" if self._full else turns[-1].finish_reason,
            weight_version=turns[-1].weight_version,
            drawn=np.concatenate(flags) if told else None,
        )

    def raise_failure(self) -> None:
        """Raise what ended a call of the engine, should the function have gone on after it."""
        if self._failure is not None:
            raise self._failure

    def _require_room(self, tokens: int) -> None:
        if self.left_tokens < tokens:
            self._full = True
            raise ConversationFull(f"{self.left_tokens} of {self._max_tokens} tokens are left")

    async def _call(self, context: IntArray, max_tokens: int | None, *, limit: int) -> Completion:
        if max_tokens is not None and max_tokens <= 0:
            raise ValueError(f"max_tokens is {max_tokens}; give a number above 0")
        if self._speaking:
            raise ValueError("it is still drawing; await each call before the next")
        call, self._calls = self._calls, self._calls + 1
        self._speaking = True
        try:
            most = limit if max_tokens is None else min(max_tokens, limit)
            return await self._draw(context, max_tokens=most, call=call)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._speaking = False

    def _said(self, answer: Completion) -> Drawn:
        text = self._tokenizer.decode(answer.token_ids)
        return Drawn(text, len(answer.token_ids), answer.finish_reason)


OwnRollout = Callable[..., Awaitable[None]]
"""`async def function(talk: Conversation, *, option: ...) -> None`"""


def rollout_of(index: int, completion: Completion, decoder: Decoder) -> Rollout:
    """A response with its text; of a conversation with its turns, the last one's text counting."""
    if completion.drawn is None:
        return Rollout(index, completion, decoder.decode(completion.token_ids))
    turns = tuple(
        Turn(drawn, decoder.decode(ids), len(ids))
        for drawn, ids in _runs(completion.token_ids, completion.drawn)
    )
    return Rollout(index, completion, [turn.text for turn in turns if turn.drawn][-1], turns)


def _runs(ids: IntArray, drawn: BoolArray) -> Iterator[tuple[bool, IntArray]]:
    """Consecutive tokens of one kind, with the kind."""
    borders = [0, *(np.flatnonzero(np.diff(drawn)) + 1).tolist(), len(ids)]
    for start, end in zip(borders[:-1], borders[1:], strict=True):
        yield bool(drawn[start]), ids[start:end]


def _ids(part: Completion | IntArray) -> IntArray:
    return part.token_ids if isinstance(part, Completion) else part
