"""A rollout function for the rules to look at."""

from __future__ import annotations

from herl_megatron.rollout.conversation import Conversation


async def talk(talk: Conversation, *, turns: int) -> None:
    """Says nothing: it is never called."""
    raise NotImplementedError
