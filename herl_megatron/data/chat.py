"""Messages to token ids: the one place where the prompt/response boundary is decided.

A response is the tokens of the assistant's text plus the token that ends its turn, exactly what
an engine samples after the generation prompt. Control tokens come from the template alone, however
a message spells them (`data.control_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from herl_megatron.config.schema import DataConfig, ModelConfig
from herl_megatron.data.chat_template import ChatTemplate
from herl_megatron.data.control_tokens import ControlTokens
from herl_megatron.data.tokenizer_files import generation_ends
from herl_megatron.data.tokenizer_folder import open_tokenizer
from herl_megatron.types import IntArray, Message

_ASKED, _ANSWERED = "question", "SomethingThatWasAnswered"
"""Stand for a conversation's earlier turns, where a template writes what follows them."""
_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)
"""In the name of a token that is no special one: part of an answer, wherever a template writes
it."""


def open_chat_tokenizer(
    model: ModelConfig, data: DataConfig, *, answer_after: str = ""
) -> ChatTokenizer:
    """The tokenizer of a run: its template's arguments and date, and the tags that answers hold.

    answer_after: `scoring.answer_after`, whose tag answers hold too, with the one that opens it.

    Raises ValueError as `ChatTokenizer` does.
    """
    return ChatTokenizer(
        model.path,
        arguments=data.chat_template_args,
        date=data.template_date,
        tags=(*data.think_tags, answer_after, answer_after.replace("/", "", 1)),
    )


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template.

    end_token_ids: tokens that end a response; the first one closes the assistant's turn in the
        chat template and is what supervised rows are ended with.
    pad_token_id: the padding token, or the end token where none is defined.
    vocab_size: number of token ids, added tokens included.
    is_as_others_load_it: whether `transformers` builds the same from the folder.
    """

    def __init__(
        self,
        path: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        date: str = "",
        tags: Iterable[str] = (),
    ) -> None:
        """
        arguments, date: see `ChatTemplate`.
        tags: texts whose special tokens are part of what people write and read, as `</think>`:
            messages may spell them, and they stay in a decoded response.

        Raises:
            ValueError: a folder without tokenizer, chat template or end token, or with a file that
                cannot be read; a tokenizer that loses text; an argument that the template does
                not read; a tag that ends responses.
        """
        self._tokenizer: Any
        self._tokenizer, self.is_as_others_load_it = open_tokenizer(path)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"model.path={path!r}: the tokenizer has no chat template; add chat_template.jinja "
                "to the folder or take the model's instruct version"
            )
        self._template = ChatTemplate(self._tokenizer, arguments=arguments, date=date)
        self._special, self._marks = _marks(self._tokenizer)
        self.vocab_size = len(self._tokenizer)
        self.end_token_ids = self._find_end_tokens(path)
        pad = self._tokenizer.pad_token_id
        self.pad_token_id = self.end_token_ids[0] if pad is None else int(pad)
        control = self._control_strings(tuple(tag for tag in tags if tag))
        self._control = ControlTokens(self._tokenizer, control)
        self._not_shown = np.asarray([*control.values(), *self.end_token_ids], dtype=np.int32)

    @property
    def chat_template(self) -> str:
        """The template's source; of several all, by name."""
        return self._template.source

    @property
    def largest_id(self) -> int:
        """Of ids that any text, the chat template or a response's end can give. Tokens that were
        added and that nothing of these uses, such as padding, need no embedding."""
        used = self.prompt_ids([Message("user", "text")])
        texts = int(self._tokenizer.vocab_size) - 1
        return max(texts, *self.end_token_ids, *map(int, used))

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        """Ids `[prompt]` of the templated messages plus the generation prompt.

        Raises ValueError where the chat template refuses them; so does `training_ids`.
        """
        contents = [message.content for message in messages]
        if not self._control.needs_care(contents):
            return self._encode(self._template.render(messages, generation_prompt=True))
        marked, marks = self._control.marked(contents)
        turns = [
            replace(message, content=content)
            for message, content in zip(messages, marked, strict=True)
        ]
        return self._control.encode(self._template.render(turns, generation_prompt=True), marks)

    def reply_ids(self, messages: Sequence[Message], *, ended: bool) -> IntArray:
        """What follows an assistant's turn: `messages` and the generation prompt for the next one,
        `[tokens]`, as the chat template writes them there.

        ended: whether the turn has its end token; without, that comes first.

        Raises:
            ValueError: the chat template refuses the messages, or does not close an assistant's
                turn with an end token.
        """
        contents, marks = [message.content for message in messages], None
        if self._control.needs_care(contents):
            contents, marks = self._control.marked(contents)
        said = [replace(m, content=c) for m, c in zip(messages, contents, strict=True)]
        before = [Message("user", _ASKED), Message("assistant", _ANSWERED)]
        text = self._template.render([*before, *said], generation_prompt=True)
        _, found, after = text.rpartition(_ANSWERED)
        ids = self._encode(after) if marks is None else self._control.encode(after, marks)
        if not found or not len(ids) or ids[0] not in self.end_token_ids:
            raise ValueError(
                "the chat template does not close an assistant's turn with a token that ends"
                " responses, so what follows it cannot be known; use `tell_ids`"
            )
        return ids[1:] if ended else ids

    def plain_ids(self, text: str) -> IntArray:
        """Ids `[tokens]` of a text without chat template, as the tokenizer encodes by default."""
        if not self._control.needs_care([text]):
            return np.asarray(self._tokenizer.encode(text), dtype=np.int32)
        (marked,), marks = self._control.marked([text])
        return self._control.encode(marked, marks, add_special=True)

    def training_ids(self, messages: Sequence[Message]) -> tuple[IntArray, IntArray]:
        """Context `[context]` and response `[response]` of a supervised row.

        The last message must be the assistant's; the response ends with `end_token_ids[0]`.
        """
        if not messages or messages[-1].role != "assistant":
            raise ValueError("the last message of a supervised row must be the assistant's")
        response = self._content_ids(messages[-1].content)
        end = np.asarray(self.end_token_ids[:1], dtype=np.int32)
        return self.prompt_ids(messages[:-1]), np.concatenate([response, end])

    def decode(self, ids: IntArray) -> str:
        """The text of ids `[tokens]`, control tokens left out."""
        shown = np.asarray(ids)[~np.isin(ids, self._not_shown)]
        return str(self._tokenizer.decode(shown, clean_up_tokenization_spaces=False))

    def _content_ids(self, text: str) -> IntArray:
        if not self._control.needs_care([text]):
            return self._encode(text)
        (marked,), marks = self._control.marked([text])
        return self._control.encode(marked, marks)

    def _encode(self, text: str) -> IntArray:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(ids, dtype=np.int32)

    def _find_end_tokens(self, path: str) -> tuple[int, ...]:
        """The template's turn end, the tokenizer's end token, those of the generation config."""
        try:
            turn_end = self._turn_end()
        except ValueError as error:
            raise ValueError(f"model.path={path!r}: {error}") from error
        written = generation_ends(path, self.vocab_size)
        found = [turn_end, self._tokenizer.eos_token_id, *written]
        ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
        if not ends:
            raise ValueError(
                f"model.path={path!r}: the tokenizer has no end token, so no response could end; "
                "set eos_token in tokenizer_config.json"
            )
        return ends

    def _turn_end(self) -> int | None:
        """The added token right after an assistant's text in the template, if there is one: where
        nothing closes the last turn, the token that opens the user's next one."""
        turns = [Message("user", "text"), Message("assistant", "herl"), Message("user", "next")]
        for shown in (turns[:2], turns):
            text = self._template.render(shown, generation_prompt=False)
            _, answer, after = text.rpartition("herl")
            after = after.partition("next")[0].lstrip()
            closing = [token for token in self._marks if after.startswith(token)]
            if answer and closing:
                return self._marks[max(closing, key=len)]
        return None

    def _control_strings(self, tags: Sequence[str]) -> dict[str, int]:
        """What is special, ends a response or marks turns, without what `tags` hold."""
        turns = [Message("user", "text"), Message("assistant", "text"), Message("user", "text")]
        written = self._encode(self._template.render(turns, generation_prompt=True)).tolist()
        control = {
            token: number
            for token, number in self._marks.items()
            if number in self._special
            or number in self.end_token_ids
            or (number in written and not _THOUGHT.search(token))
        }
        named = {token for token in control if any(token in tag for tag in tags)}
        if ends := sorted(token for token in named if control[token] in self.end_token_ids):
            raise ValueError(
                f"{', '.join(ends)} in scoring.answer_after or data.think_tags ends a response, so"
                " nothing could follow it; take it out"
            )
        return {token: number for token, number in control.items() if token not in named}


def _marks(tokenizer: Any) -> tuple[set[int], dict[str, int]]:
    """Ids of the special tokens; and the added tokens that may be control tokens, special or not,
    as they are spelled: words and blanks are never."""
    special = set(map(int, tokenizer.all_special_ids))
    marks: dict[str, int] = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            special.add(int(number))
        if int(number) in special or re.search(r"[^\w\s]", token.content):
            marks[str(token.content)] = int(number)
    return special, marks
