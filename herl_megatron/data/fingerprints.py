"""What a run reads, as short hashes by name: a resumed run must read the same.

A file may move or be written anew with other blanks; what is hashed is what reaches the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.config.decides import keys_that_decide
from herl_megatron.config.hooks import Hook
from herl_megatron.config.purpose import TUNES, Purpose
from herl_megatron.config.schema import ModelConfig
from herl_megatron.config.schema.base import Decides
from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.files.run_files import MANIFEST
from herl_megatron.rubrics.checks.registry import module_file
from herl_megatron.rubrics.checks.sources import source_hash
from herl_megatron.types import Prompt

_OF_MODEL = ("tokenizer of model.path", "chat template of model.path", "config.json of model.path")
_WEIGHTS = "weights of the model"
_EVALUATION_INPUTS = frozenset(
    key.path for key in keys_that_decide(Decides.EVALUATION, purpose="train") if key.by_content
)
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_BLOCK_BYTES = 1024
_LONGEST_HEADER = 100 << 20  # what the format allows
_NO_PART = {
    "tokenizer_config.json": {"chat_template", "name_or_path"},
    "config.json": {"_name_or_path", "transformers_version", "dtype", "torch_dtype"},
}
"""Keys that decide nothing, or that have a fingerprint or a configuration key of their own."""


def fingerprints(
    model: ModelConfig,
    tokenizer: ChatTokenizer,
    *,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    check_modules: Sequence[str],
    text_files: Mapping[str, str],
    hooks: Sequence[Hook] = (),
    weights: bool = False,
) -> dict[str, str]:
    """By name: rows, tokenizer, chat template, the model's config.json, source of the user's check
    modules (which must be imported) and hooks, and texts; what a run does not use is left out.

    text_files: paths by their configuration key, "" for a key that names none.

    weights: also those of `model.path`, for who reads them again after a resume: engines that no
        trainer gives weights, and a reference model.

    Raises:
        ValueError: a file cannot be read.
    """
    folder = Path(model.path)
    of_model = (
        _short(
            _of_files(folder, _TOKENIZER_FILES).encode(), repr(tokenizer.end_token_ids).encode()
        ),
        _short(tokenizer.chat_template.encode()),
        _of_files(folder, ("config.json",)),
    )
    found = dict(zip(_OF_MODEL, of_model, strict=True))
    if weights and not model.random_init:
        start = model.megatron_path
        found[_WEIGHTS] = _of_files(Path(start), [MANIFEST]) if start else (
            of_weights(folder)
        )  # fmt: skip
    if train:
        found["data.train"] = of_rows(train)
    if held_out:
        found["data.eval"] = of_rows(held_out)
    for module in check_modules:
        found[f"source of scoring.check_modules {module}"] = source_hash(
            module, module_file(module)
        )
    for hook in hooks:
        found[f"source of {hook.key} {hook.name}"] = source_hash(hook.module, hook.file)
    for key, path in text_files.items():
        if path:
            found[key] = _short(_read(Path(path)))
    return found


def of_evaluation(name: str, *, purpose: Purpose) -> bool:
    """Whether what goes by this name decides the held-out numbers of `herl PURPOSE` alone: of SFT
    and DPO all but the model and the rows that are fitted."""
    if purpose in TUNES:
        return name not in (*_OF_MODEL, _WEIGHTS, f"{purpose}.data")
    return name in _EVALUATION_INPUTS


def of_fitted_rows(rows: Sequence[Any]) -> str:
    """Number and hash of rows that are fitted, each as JSON values, in order."""
    lines = (json.dumps(row, sort_keys=True, allow_nan=False) for row in rows)
    return f"{len(rows)} rows {_short(*(line.encode() for line in lines))}"


def of_rows(rows: Sequence[Prompt]) -> str:
    """Number and hash of whole rows, in order: messages, rubrics, references and all."""
    lines = (json.dumps(row_from_prompt(row), sort_keys=True, default=repr) for row in rows)
    return f"{len(rows)} rows {_short(*(line.encode() for line in lines))}"


def _of_files(folder: Path, names: Iterable[str]) -> str:
    """Of those that are there; JSON by what it says."""
    parts = []
    for name in names:
        if (file := folder / name).is_file():
            parts += [name.encode(), _content(file)]
    return _short(*parts)


def of_weights(folder: Path) -> str:
    """Names, types, shapes and a block of every tensor: a tensor that was trained further differs
    nearly everywhere.

    Raises:
        ValueError: a file is no safetensors.
    """
    parts = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = opened.read(min(length, _LONGEST_HEADER))
            parts.append(header)
            for begin, end in _tensor_places(header, file):
                opened.seek(8 + length + (begin + end) // 2)
                parts.append(opened.read(min(_BLOCK_BYTES, (end - begin + 1) // 2)))
    return _short(*parts)


def _tensor_places(header: bytes, file: Path) -> list[tuple[int, int]]:
    """Begin and end of each tensor's bytes, after the header."""
    try:
        tensors = json.loads(header)
        places = [v["data_offsets"] for name, v in tensors.items() if name != "__metadata__"]
        return sorted((int(begin), int(end)) for begin, end in places)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def _content(file: Path) -> bytes:
    content = _read(file)
    if file.suffix != ".json":
        return content
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError):
        return content  # who loads it says what is wrong with it
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if k not in _NO_PART.get(file.name, ())}
    return json.dumps(values, sort_keys=True).encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error


def _short(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
