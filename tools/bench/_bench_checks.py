"""A check of a known cost for tools/bench/bench_scoring.py; scoring workers import it by name."""

from __future__ import annotations

import hashlib

from herl_megatron.rubrics.checks.registry import register


@register("bench/hash", description="Hash the response {rounds} times.", judges_blank=True)
def hashed(response: str, *, rounds: int) -> bool:
    """A fixed amount of work that neither allocates nor frees the interpreter lock."""
    digest = response.encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return digest[0] < 128
