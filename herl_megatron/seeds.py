"""Seeds that depend on what is drawn, never on when: one pure function and its named uses."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

RequestKind = Literal["rollout", "revision"]


def derive_seed(run_seed: int, *parts: int | str) -> int:
    """A seed in [0, 2^63) from the run's seed and what it is for, the same on every machine.

    SHA-256 of the JSON list, so neighbouring parts cannot run into each other; 63 bits fit the
    signed 64-bit seed that vLLM and torch generators take.
    """
    text = json.dumps([run_seed, *parts], allow_nan=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def request_seed(run_seed: int, *, step: int, prompt_id: str, kind: RequestKind, index: int) -> int:
    """Seed of one sampled response: run seed, step, prompt, what it is, and which one."""
    return derive_seed(run_seed, step, prompt_id, kind, index)


def turn_seed(seed: int, *, turn: int) -> int:
    """Seed of one call of a conversation, the first of which is number 0, from its response's seed:
    a conversation of one turn is drawn like any response."""
    return derive_seed(seed, "turn", turn) if turn else seed


def continuation_seed(seed: int, *, tokens: int) -> int:
    """Seed of the rest of a response whose first `tokens` were drawn with `seed`.

    With `seed` itself the rest would be drawn by the random numbers that drew the beginning.
    """
    return derive_seed(seed, "continue", tokens)


def selection_seed(run_seed: int, *, step: int, prompt_id: str) -> int:
    """Seed of the choice of experiences in one group (`select: random`)."""
    return derive_seed(run_seed, step, prompt_id, "select")


def join_seed(run_seed: int, *, step: int, prompt_id: str) -> int:
    """Seed of the slots drawn in one group (`replace: random`, `no_qualified: copy_best`)."""
    return derive_seed(run_seed, step, prompt_id, "join")
