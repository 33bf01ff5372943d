"""The toy task as files: what `tools/make_toy_task.py` writes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.toy import WarmStart, draw_prompts, draw_sft_rows
from herl_megatron.data.toy_model import write_model_folder

TOY_FILES = ("model", "train.jsonl", "heldout.jsonl", "sft.jsonl")
"""What `write_toy_task` writes, by name."""


def write_toy_task(
    folder: Path, *, seed: int, train_prompts: int, heldout_prompts: int, sft_rows: int
) -> None:
    """Write `model/`, `train.jsonl`, `heldout.jsonl` and `sft.jsonl` under `folder`.

    The same arguments write the same bytes. No held-out prompt occurs in the other two files.
    `sft.jsonl` alternates direct answers and revisions, every row fresh.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heldout = draw_prompts(
        random.Random(f"toy/{seed}/heldout"), heldout_prompts, exclude=(), prefix="toy-heldout"
    )
    train = draw_prompts(
        random.Random(f"toy/{seed}/train"), train_prompts, exclude=heldout, prefix="toy-train"
    )
    _write_jsonl(folder / "heldout.jsonl", map(row_from_prompt, heldout))
    _write_jsonl(folder / "train.jsonl", map(row_from_prompt, train))
    rows = draw_sft_rows(random.Random(f"toy/{seed}/sft"), exclude=heldout, settings=WarmStart())
    _write_jsonl(
        folder / "sft.jsonl",
        (
            {"messages": [asdict(message) for message in messages]}
            for messages in itertools.islice(rows, sft_rows)
        ),
    )
    write_model_folder(folder / "model", seed=seed)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
