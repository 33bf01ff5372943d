"""Tokens that steer a model, and text that only spells them.

Turn marks, end tokens and all else that a tokenizer calls special are put into a context by the
chat template alone. Typed as text - in a prompt, an answer, a draft that a revision prompt shows -
they stay text: else a user, or the policy itself, could end a turn and open another
(huggingface/transformers#47822).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from herl_megatron.types import IntArray

_PLANES = range(0xF0000, 0x10FFFE)
"""Private-use characters, which no text means anything by."""


class ControlTokens:
    """The control tokens of one tokenizer: `strings` maps each as it is spelled to its id."""

    def __init__(self, tokenizer: Any, strings: Mapping[str, int]) -> None:
        """tokenizer: of `transformers`, with a `tokenizers` backend if control tokens are to be
        told from text that spells them.
        """
        self._tokenizer = tokenizer
        self._strings = dict(strings)
        longest_first = sorted(self._strings, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def needs_care(self, contents: Iterable[str]) -> bool:
        """Whether a tokenizer that looks for control tokens might find one in these texts."""
        return self._normalized or any(self._spelled.search(text) for text in contents)

    def marked(self, contents: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The contents with one private character for each control token that they spell, which
        passes through a template unseen, and what each character stands for."""
        used = set().union(*map(set, contents))
        places = iter(c for c in map(chr, _PLANES) if c not in used)
        marks = {spelled: next(places) for spelled in self._strings}
        marked = [self._spelled.sub(lambda found: marks[found[0]], text) for text in contents]
        return marked, {mark: spelled for spelled, mark in marks.items()}

    def encode(self, text: str, marks: Mapping[str, str], *, add_special: bool = False) -> IntArray:
        """Ids `[tokens]` of a text in which `marks` stand for spelled control tokens.

        Every control token in the text itself is one; what the marks stand for is encoded as the
        characters that it is.

        Raises:
            ValueError: the tokenizer has no `tokenizer.json`, so the two cannot be told apart.
        """
        plain, names = self._without_names
        text = self._spelled.sub(lambda found: names[found[0]], text)
        text = re.sub(
            "|".join(map(re.escape, marks)) or r"(?!)", lambda found: marks[found[0]], text
        )
        ids = plain.encode(text, add_special_tokens=add_special).ids
        return np.asarray(ids, dtype=np.int32)

    @cached_property
    def _normalized(self) -> bool:
        """Whether a token is also found in text that only becomes it, as by NFKC."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return False
        added = self._tokenizer.added_tokens_decoder
        of_model = backend.get_vocab_size(with_added_tokens=False)
        return any(
            number < of_model or added[number].normalized for number in self._strings.values()
        )

    @cached_property
    def _without_names(self) -> tuple[Any, dict[str, str]]:
        """The tokenizer with names for its control tokens that no text can spell, and these."""
        from tokenizers import Tokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            shown = ", ".join(sorted(self._strings)[:3])
            raise ValueError(
                f"a text spells a control token of the tokenizer (such as {shown}), which it cannot"
                " tell from the token itself without tokenizer.json: add that file to model.path"
            )
        description: dict[str, Any] = json.loads(backend.to_str())
        nonce = secrets.token_hex(8)
        names = {
            spelled: f"\U0010fffd{nonce}.{token}\U0010fffd"
            for spelled, token in self._strings.items()
        }
        for token in description["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename(description["model"], names)
        renamed = Tokenizer.from_str(json.dumps(description, allow_nan=False))
        for spelled, token in self._strings.items():
            assert renamed.token_to_id(names[spelled]) == token, f"{spelled} lost its id {token}"
        return renamed, names


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give entries of the model's vocabulary other names, and drop merges that make them."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if (unknown := model.get("unk_token")) is not None:
        model["unk_token"] = names.get(unknown, unknown)
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if not _concerns(m, names)]


def _concerns(merge: str | list[str], names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
