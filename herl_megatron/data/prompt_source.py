"""Prompt files, and the seeded, resumable order in which training draws from them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from herl_megatron.data.canonical_rows import messages_from_sft_row, prompt_from_row
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.row_files import rows_of
from herl_megatron.types import Message, Prompt

T = TypeVar("T")


def load_prompts(path: str) -> list[Prompt]:
    """Read canonical rows from JSONL or Parquet (`.parquet`).

    Raises ValueError naming file, line (Parquet: row) and what is wrong: malformed JSON, missing
    or unknown keys, an invalid rubric, an id used twice, or no row at all.
    """
    prompts: list[Prompt] = []
    ids = UniqueIds(path)
    for line, prompt in parsed_rows(path, prompt_from_row):
        ids.add(prompt.id, line)
        prompts.append(prompt)
    return prompts


def load_prompt_files(paths: Sequence[str]) -> list[Prompt]:
    """The rows of all files, one file after the other.

    Raises ValueError as `load_prompts`, and for an id that two of the files have.
    """
    prompts: list[Prompt] = []
    first: dict[str, str] = {}
    for path in paths:
        for prompt in load_prompts(path):
            if (other := first.setdefault(prompt.id, path)) != path:
                raise ValueError(
                    f"{path}: the id {prompt.id!r} is already used in {other}; the rows of all"
                    " files are evaluated together, so ids must differ: rename one, or leave one of"
                    " the files out"
                )
            prompts.append(prompt)
    return prompts


class UniqueIds:
    """The ids of a file's rows; a second use of one is a ValueError that names both lines."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: dict[str, int] = {}

    def add(self, row_id: str, line: int) -> None:
        """Note the id of a row."""
        if row_id in self._lines:
            raise ValueError(
                f"{self._path}:{line}: the id {row_id!r} is already used in line "
                f"{self._lines[row_id]}; ids must differ"
            )
        self._lines[row_id] = line


@dataclass(frozen=True)
class SftRow:
    """A supervised row: messages, the last one the assistant's. `where` is `file:line`."""

    where: str
    messages: tuple[Message, ...]


def load_sft_rows(path: str) -> list[SftRow]:
    """Read supervised rows. Errors as `load_prompts`."""
    return [
        SftRow(f"{path}:{line}", messages)
        for line, messages in parsed_rows(path, messages_from_sft_row)
    ]


def check_prompt_lengths(
    prompts: Sequence[Prompt], tokenizer: ChatTokenizer, limit_tokens: int
) -> None:
    """Raise ValueError, naming the rows, if a templated prompt is longer than the limit, or the
    chat template refuses one."""
    lengths = []
    for prompt in prompts:
        try:
            lengths.append((len(tokenizer.prompt_ids(prompt.messages)), prompt.id))
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id!r}: {error}") from error
    too_long = sorted((pair for pair in lengths if pair[0] > limit_tokens), reverse=True)
    if too_long:
        shown = ", ".join(f"{name} ({tokens} tokens)" for tokens, name in too_long[:5])
        more = f" and {len(too_long) - 5} more" if len(too_long) > 5 else ""
        raise ValueError(
            f"{len(too_long)} of {len(prompts)} prompts are longer than "
            f"data.max_prompt_tokens={limit_tokens}: {shown}{more}; "
            f"raise the limit to {too_long[0][0]} or drop the rows"
        )


def check_no_leakage(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """Raise ValueError if a held-out row has the id or exactly the messages of a training row.

    Its score would tell what was learnt by heart.
    """
    ids = {prompt.id for prompt in train}
    trained = {prompt.messages: prompt.id for prompt in train}
    leaked = [
        f"{prompt.id!r} (same id)"
        if prompt.id in ids
        else f"{prompt.id!r} (messages of {trained[prompt.messages]!r})"
        for prompt in held_out
        if prompt.id in ids or prompt.messages in trained
    ]
    _refuse_leaks(
        leaked, len(held_out), "data.train", " (or, where only the ids agree, rename them)"
    )


def check_unseen(
    seen: Mapping[tuple[Message, ...], str], held_out: Sequence[Prompt], *, key: str
) -> None:
    """The same of rows that are fitted, those of `key`: no held-out row has the messages of one.

    seen: their messages before what is fitted, with where each stands.
    """
    leaked = [
        f"{prompt.id!r} (messages of {seen[prompt.messages]})"
        for prompt in held_out
        if prompt.messages in seen
    ]
    _refuse_leaks(leaked, len(held_out), key, "")


def _refuse_leaks(leaked: Sequence[str], held_out: int, key: str, otherwise: str) -> None:
    if leaked:
        more = f" and {len(leaked) - 5} more" if len(leaked) > 5 else ""
        raise ValueError(
            f"{len(leaked)} of {held_out} rows of data.eval are also in {key}: "
            f"{', '.join(leaked[:5])}{more}; drop them from one of the two files{otherwise}"
        )


class PromptStream:
    """An endless, resumable stream of prompts: every prompt once per epoch.

    With `shuffle`, each epoch has its own order, a function of `seed` and epoch only. A batch that
    spans two epochs holds no prompt twice: prompts still in the batch go to the end of the new
    epoch.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool) -> None:
        if not prompts:
            raise ValueError("there are no prompts to draw from")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._order = self._epoch_order(0)
        self._position = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, counted from 0."""
        return self._epoch + (self._position == len(self._order))

    def next_batch(self, n: int) -> list[Prompt]:
        """The next `n` different prompts; ValueError if there are fewer than `n`."""
        if n > len(self._prompts):
            raise ValueError(
                f"a batch of {n} prompts was asked for and there are only {len(self._prompts)}; "
                "lower train.prompts_per_step or give more rows"
            )
        chosen = self._order[self._position : self._position + n]
        self._position += len(chosen)
        if len(chosen) < n:
            self._epoch += 1
            taken = set(chosen)
            order = self._epoch_order(self._epoch)
            self._order = [i for i in order if i not in taken] + [i for i in order if i in taken]
            self._position = n - len(chosen)
            chosen = chosen + self._order[: self._position]
        return [self._prompts[i] for i in chosen]

    def state_dict(self) -> dict[str, Any]:
        """The cursor, as plain JSON values."""
        return {
            "seed": self._seed,
            "shuffle": self._shuffle,
            "prompts": self._fingerprint(),
            "epoch": self._epoch,
            "position": self._position,
            "order": list(self._order),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; ValueError if the data or seed differ."""
        current = {
            "seed": self._seed,
            "shuffle": self._shuffle,
            "prompts": self._fingerprint(),
        }
        for key, value in current.items():
            if state[key] != value:
                raise ValueError(
                    f"cannot resume the prompt order: {key} was {state[key]!r} and is now "
                    f"{value!r}; resume with the same data, run.seed and data.shuffle"
                )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._order = [int(i) for i in state["order"]]

    def _epoch_order(self, epoch: int) -> list[int]:
        indices = range(len(self._prompts))
        if not self._shuffle:
            return list(indices)
        # Sorting by draws, because Python promises the same `random()` for ever, not `shuffle()`.
        generator = random.Random(f"{self._seed}/{epoch}")
        keys = [generator.random() for _ in indices]
        return sorted(indices, key=keys.__getitem__)

    def _fingerprint(self) -> str:
        ids = json.dumps([prompt.id for prompt in self._prompts], allow_nan=False)
        return f"{len(self._prompts)} rows {hashlib.sha256(ids.encode()).hexdigest()[:16]}"


def parsed_rows(path: str, parse: Callable[[object], T]) -> Iterator[tuple[int, T]]:
    """Yield (line, parsed row); errors get file and line in front."""
    line = 0
    for line, row in rows_of(path):
        try:
            parsed = parse(row)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from error
        yield line, parsed
    if line == 0:
        raise ValueError(f"{path}: the file has no rows")
