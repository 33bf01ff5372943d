"""A tokenizer out of its folder: whatever is wrong with a file names that file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from herl_megatron.files.strict_json import read_object

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(path: str, *, as_written: bool = False) -> Any:
    """The tokenizer of a Hugging Face folder, as `transformers` makes it.

    as_written: by the class that takes `tokenizer.json` as it is, whatever the folder names.

    Raises:
        ValueError: there is none, or a file of it cannot be read (named).
    """
    # Imported here: scoring workers and configuration tools never need it.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name in _SETTINGS:
        if os.path.lexists(file := Path(path) / name):
            read_object(file)
    _check_template(Path(path) / "chat_template.jinja")
    try:
        loader: Any = PreTrainedTokenizerFast if as_written else AutoTokenizer
        tokenizer = loader.from_pretrained(path, local_files_only=True)
        tokenizer.decode(tokenizer.encode("two words", add_special_tokens=False))
        return tokenizer
    except Exception as error:  # of files that are JSON and mean nothing it raises anything
        said = str(error) if isinstance(error, OSError | ValueError) else repr(error)
        raise ValueError(
            f"model.path={path!r}: no tokenizer could be loaded ({said}); give a Hugging Face "
            "folder that holds one"
        ) from error


def _check_template(file: Path) -> None:
    try:
        if file.is_file():
            file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}; download or copy it again") from error


def read_tokenizer_file(path: str) -> Any | None:
    """`tokenizer.json` of the folder as the `tokenizers` library reads it; None without one.

    Raises:
        ValueError: it cannot be read.
    """
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own
        raise ValueError(
            f"{file} is no tokenizer that can be read ({error}); download or copy it again"
        ) from error


def generation_ends(path: str, vocab_size: int) -> list[int]:
    """`eos_token_id` of the folder's generation config: one, several or none.

    Raises:
        ValueError: the file cannot be read, or names what is no token.
    """
    file = Path(path) / "generation_config.json"
    if not os.path.lexists(file):
        return []
    given = read_object(file).get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    for end in ends:
        if not isinstance(end, int) or isinstance(end, bool) or not 0 <= end < vocab_size:
            raise ValueError(
                f"{file}: eos_token_id is {given!r:.80}; give the id of a token, from 0 to"
                f" {vocab_size - 1}, or a list of them"
            )
    return ends
