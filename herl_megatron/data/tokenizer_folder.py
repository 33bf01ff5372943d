"""A tokenizer as its folder says it is.

`transformers` 5 builds the tokenizers of some model classes anew from their vocabulary and leaves
out what else `tokenizer.json` says; a byte-level tokenizer of a Llama model then loses every space
(huggingface/transformers#48206). The file is what the model was trained with.
"""

from __future__ import annotations

import logging
from typing import Any

from herl_megatron.data.tokenizer_files import load_tokenizer, read_tokenizer_file

_log = logging.getLogger(__name__)
_FILE = "tokenizer.json"
_PLAIN = (
    'Write "two" short lines, please:\n\n* It is 12:30; don\'t wait.\n  * <<Good-bye>>',
    "def f(x):\n    return {'a': x[0] + 1, \"b\": 3.14}  # $5, 100 %, a_b-c\n",
)
_PROBES = (
    *_PLAIN,
    "  two spaces, a\ttab  and the end ",
    "d\u00e9j\u00e0 vu, na\u00efve \u2014 \u201cquoted\u201d \u2026 5 \u20ac",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \U0001f600",
)


def open_tokenizer(path: str) -> tuple[Any, bool]:
    """The tokenizer of a Hugging Face folder, and whether others who load the folder with
    `transformers` get the same.

    Where `transformers` builds another one than `tokenizer.json` says, the file counts, which is
    said; as is a file whose tokenizer alters plain text.

    Raises:
        ValueError: there is none, it cannot be read, or what was built without a `tokenizer.json`
            alters plain text.
    """
    written = read_tokenizer_file(path)  # first: whoever else reads it says less
    tokenizer = load_tokenizer(path)
    same = _is_as_written(tokenizer, written)
    if not same:
        _log.warning(
            "model.path=%r: with the tokenizer_class and model_type given there, transformers would"
            " encode texts otherwise than %s says; the file is what counts, here and in exports",
            path,
            _FILE,
        )
        tokenizer = load_tokenizer(path, as_written=True)
        if not _is_as_written(tokenizer, written):
            raise ValueError(
                f"model.path={path!r}: transformers encodes texts otherwise than {_FILE} says, by"
                " whatever class; mend tokenizer_config.json"
            )
    if altered := _altered(tokenizer):
        if written is None:
            raise ValueError(
                f"model.path={path!r}: the tokenizer does not give back what it encodes: {altered},"
                f" so prompts and answers would lose text; add {_FILE}, or mend tokenizer_class"
            )
        _log.warning("model.path=%r: as %s says, %s", path, _FILE, altered)
    return tokenizer, same


def _altered(tokenizer: Any) -> str:
    """A plain text that encoding alters in silence, and what it becomes; empty without one."""
    for probe in _PLAIN:
        ids = tokenizer.encode(probe, add_special_tokens=False)
        back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if back != probe and tokenizer.unk_token_id not in ids:  # a small vocabulary says so
            return f"{probe!r} becomes {back!r}"
    return ""


def _is_as_written(tokenizer: Any, written: Any | None) -> bool:
    """Whether probes and added tokens have the ids that `tokenizer.json`, if any, gives them."""
    if written is None:
        return True
    written.no_truncation()
    written.no_padding()
    added = [token.content for token in written.get_added_tokens_decoder().values()]
    return all(
        tokenizer.encode(probe, add_special_tokens=False)
        == written.encode(probe, add_special_tokens=False).ids
        for probe in (*_PROBES, *added)
    )
