"""Messages to token ids: the one place where the prompt/response boundary is decided.

A response is the tokens of the assistant's text plus the token that ends its turn, exactly what
an engine samples after the generation prompt.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herl_megatron.types import IntArray, Message

_log = logging.getLogger(__name__)
_PROBE = 'Write "two" short lines, please:\n\n* It is 12:30; don\'t wait.\n  * <<Good-bye>>'


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template.

    end_token_ids: tokens that end a response; the first one closes the assistant's turn in the
        chat template and is what supervised rows are ended with.
    pad_token_id: the padding token, or the end token where none is defined.
    vocab_size: number of token ids, added tokens included.

    Raises ValueError for a folder without tokenizer, chat template or end token.
    """

    def __init__(self, path: str) -> None:
        # Imported here: scoring workers and configuration tools never need it.
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.path={path!r}: no tokenizer could be loaded ({error}); give a Hugging Face "
                "folder that holds one"
            ) from error
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"model.path={path!r}: the tokenizer has no chat template; add chat_template.jinja "
                "to the folder or take the model's instruct version"
            )
        self.end_token_ids = self._find_end_tokens(path)
        pad = self._tokenizer.pad_token_id
        self.pad_token_id = self.end_token_ids[0] if pad is None else int(pad)
        self.vocab_size = len(self._tokenizer)
        self._compare_with_file(path)

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        """Ids `[prompt]` of the templated messages plus the generation prompt."""
        return self._encode(self._render(messages, generation_prompt=True))

    def plain_ids(self, text: str) -> IntArray:
        """Ids `[tokens]` of a text without chat template, as the tokenizer encodes by default."""
        return np.asarray(self._tokenizer.encode(text), dtype=np.int32)

    def training_ids(self, messages: Sequence[Message]) -> tuple[IntArray, IntArray]:
        """Context `[context]` and response `[response]` of a supervised row.

        The last message must be the assistant's; the response ends with `end_token_ids[0]`.
        """
        if not messages or messages[-1].role != "assistant":
            raise ValueError("the last message of a supervised row must be the assistant's")
        response = self._encode(messages[-1].content)
        end = np.asarray(self.end_token_ids[:1], dtype=np.int32)
        return self.prompt_ids(messages[:-1]), np.concatenate([response, end])

    def decode(self, ids: IntArray) -> str:
        """The text of ids `[tokens]`, special tokens left out."""
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation_prompt
            )
        )

    def _encode(self, text: str) -> IntArray:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(ids, dtype=np.int32)

    def _compare_with_file(self, path: str) -> None:
        """Warn if `transformers` encodes a probe otherwise than `tokenizer.json` says.

        Version 5 rebuilds the tokenizers of some model types from their vocabulary alone; a
        foreign pre-tokenizer is then ignored, and a model trained with it sees other tokens.
        """
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            return
        from tokenizers import Tokenizer

        written = Tokenizer.from_file(str(file)).encode(_PROBE, add_special_tokens=False).ids
        rebuilt = self._encode(_PROBE).tolist()
        if written != rebuilt:
            _log.warning(
                "model.path=%r: transformers encodes a probe text in %d tokens, tokenizer.json in "
                "%d; check that tokenizer_class and model_type fit this tokenizer",
                path,
                len(rebuilt),
                len(written),
            )

    def _find_end_tokens(self, path: str) -> tuple[int, ...]:
        """The template's turn end, the tokenizer's end token, those of the generation config."""
        found = [*self._turn_end(), self._tokenizer.eos_token_id, *_generation_ends(path)]
        ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
        if not ends:
            raise ValueError(
                f"model.path={path!r}: the tokenizer has no end token, so no response could end; "
                "set eos_token in tokenizer_config.json"
            )
        return ends

    def _turn_end(self) -> list[int]:
        """The special token right after an assistant's text in the template, if there is one."""
        marker = "herl"
        text = self._render(
            [Message("user", "text"), Message("assistant", marker)], generation_prompt=False
        )
        after = self._encode(text.rpartition(marker)[2])
        special = set(self._tokenizer.all_special_ids)
        return [int(token) for token in after[:1] if int(token) in special]


def _generation_ends(path: str) -> list[int]:
    """`eos_token_id` of the folder's generation config: one, several or none."""
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        return []
    ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    if ends is None:
        return []
    return ends if isinstance(ends, list) else [ends]
