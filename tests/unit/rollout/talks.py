"""An engine that speaks by the alphabet, and a pipeline whose rollouts are conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.rollout import first_samples
from herl_megatron.rollout.conversation import Conversation
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.types import (
    Completion,
    GenerateRequest,
    Prompt,
    ScoredGroup,
)
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts

Function = Callable[[Conversation], Awaitable[None]]
ROLLOUT = RolloutConfig(group_size=2, max_response_tokens=40)
TOLD = "user>again|assistant>"
"""What `tell("again")` adds after a turn that has ended, 21 tokens."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Speaker(FakeEngine):
    """Turn k of a rollout is the letters after 2 k, two of them, with log-probs -k-0.5 and -k-1;
    one whose limit is below two is cut."""

    def complete(self, request: GenerateRequest) -> Completion:
        _, several, turn = request.request_id.rpartition("-turn")
        k = int(turn) if several else 0
        ids = CharTokenizer().plain_ids(LETTERS[2 * k : 2 * k + 2])[: request.sampling.max_tokens]
        log_probs = np.array([-k - 0.5, -k - 1], np.float32)[: len(ids)]
        reason = "stop" if len(ids) == 2 else "length"
        return Completion(request.request_id, ids, log_probs, reason, 4)  # type: ignore[arg-type]


async def two_turns(talk: Conversation) -> None:
    await talk.generate()
    talk.tell("again")
    await talk.generate()


def pipeline_of(
    function: Function | None,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rollout: RolloutConfig = ROLLOUT,
    hindsight: HindsightConfig | None = None,
    scorer: FakeScorer | None = None,
) -> RolloutPipeline:
    """With the function as if the configuration named it."""
    if function is not None:
        rollout = rollout.model_copy(update={"function": "own:function"})
        monkeypatch.setattr(first_samples, "own_rollout", lambda _: function)
    stage = None
    if hindsight is not None:
        stage = open_stage(hindsight, rollout, max_tokens=10_000)
    return RolloutPipeline(
        [engine], scorer or FakeScorer(), CharTokenizer(), rollout, stage, seed=9
    )


def groups_of(
    function: Function | None,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    prompts: Sequence[Prompt] | None = None,
    **options: Any,
) -> list[ScoredGroup]:
    pipeline = pipeline_of(function, engine, monkeypatch, **options)
    return asyncio.run(pipeline.run(prompts or make_prompts(1), step=3))
