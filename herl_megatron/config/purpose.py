"""What a configuration is used for: the commands that run one, and which parts each needs."""

from __future__ import annotations

from typing import Literal

Purpose = Literal["train", "sft", "dpo", "eval", "improve"]
TRAINS: frozenset[Purpose] = frozenset({"train", "sft", "dpo"})
"""Commands that start the trainer."""
SAMPLES: frozenset[Purpose] = frozenset({"train", "eval", "improve"})
"""Commands that start engines and score."""
RESUMES: frozenset[Purpose] = frozenset({"train", "improve"})
"""Commands that can go on where an earlier start was stopped."""
