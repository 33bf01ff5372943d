"""Batches of supervised rows and the summary of an evaluation, by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from herl_megatron.commands.evaluate import summarize
from herl_megatron.commands.sft import SftTask, batches, to_token_row
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompt_source import load_sft_rows
from herl_megatron.types import (
    Completion,
    Criterion,
    IntArray,
    Message,
    Prompt,
    Rollout,
    RolloutGroup,
    Rubric,
    Score,
    Scored,
    ScoredGroup,
    TokenRow,
    Unscored,
)


class FakeTokenizer(ChatTokenizer):
    """Three context tokens and one response token per character of the answer."""

    def __init__(self) -> None:  # reads no folder
        pass

    def training_ids(self, messages: Sequence[Message]) -> tuple[IntArray, IntArray]:
        return np.arange(3, dtype=np.int32), np.arange(len(messages[-1].content), dtype=np.int32)


def row(name: str) -> TokenRow:
    ids = np.zeros(1, np.int32)
    return TokenRow(name, ids, ids)


def test_an_epoch_holds_every_row_once_and_the_next_has_another_order() -> None:
    rows = [row(str(i)) for i in range(12)]
    names = [
        r.prompt_id
        for batch in islice(batches(rows, size=4, seed=0, shuffle=True), 6)
        for r in batch
    ]
    assert sorted(names[:12]) == sorted(names[12:]) == sorted(r.prompt_id for r in rows)
    assert names[:12] != names[12:]
    again = [
        r.prompt_id
        for batch in islice(batches(rows, size=4, seed=0, shuffle=True), 6)
        for r in batch
    ]
    assert names == again


def test_without_shuffling_the_order_is_the_files() -> None:
    rows = [row(str(i)) for i in range(3)]
    stream = batches(rows, size=2, seed=0, shuffle=False)
    assert [r.prompt_id for batch in islice(stream, 3) for r in batch] == list("012012")


class Fits:
    """A trainer that notes the rows of each step."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    async def sft_step(self, rows: Sequence[TokenRow]) -> dict[str, float]:
        self.steps.append([row.prompt_id for row in rows])
        return {}


def test_a_resumed_run_fits_the_rows_that_come_next() -> None:
    """12 rows, 5 to a step: the third step goes over the end of the first epoch."""

    async def from_step(first: int) -> list[list[str]]:
        trainer = Fits()
        task = SftTask([row(str(i)) for i in range(12)], size=5, seed=3, shuffle=True)
        task.load_state_dict(task.state_dict())
        for step in range(first, 6):
            await task.step(cast(Any, trainer), step)
        return trainer.steps

    whole = asyncio.run(from_step(0))
    assert len(whole) == 6 and len(set(map(tuple, whole))) == 6
    for first in (1, 3, 5):
        assert asyncio.run(from_step(first)) == whole[first:]


def test_a_long_row_is_refused_with_its_line_and_lengths(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "12345"}]
    path = tmp_path / "sft.jsonl"
    path.write_text("\n" + json.dumps({"messages": turns}) + "\n")
    (loaded,) = load_sft_rows(str(path))
    made = to_token_row(loaded, FakeTokenizer(), max_tokens=8)
    assert (made.tokens, made.prompt_id) == (8, f"{path}:2")
    message = r"sft\.jsonl:2: the row has 3 \+ 5 tokens, .* sft\.max_tokens is 7: raise it"
    with pytest.raises(ValueError, match=message):
        to_token_row(loaded, FakeTokenizer(), max_tokens=7)


def scored_group(scores: Sequence[Score]) -> ScoredGroup:
    criteria = (Criterion("a", "rule", check="one"), Criterion("b", "rule", check="two"))
    prompt = Prompt("p", (Message("user", "x"),), Rubric(criteria))
    rollouts = tuple(
        Rollout(
            i,
            Completion(str(i), np.zeros(i + 1, np.int32), np.zeros(i + 1, np.float32), "stop", 0),
            "",
        )
        for i in range(len(scores))
    )
    return ScoredGroup(RolloutGroup(prompt, np.zeros(1, np.int32), rollouts), tuple(scores))


def test_summary_averages_scored_responses_and_counts_the_rest() -> None:
    result = summarize(
        [
            scored_group(
                [
                    Scored(1.0, (), ("a", "b"), ()),
                    Scored(0.5, (), ("a",), ("b",)),
                    Unscored("judge down"),
                ]
            )
        ]
    )
    assert result.reward == pytest.approx(0.75)
    assert result.all_satisfied == pytest.approx(0.5)
    assert (result.responses, result.unscored) == (3, 1)
    assert result.response_tokens == pytest.approx(2.0)  # lengths 1, 2, 3
    assert result.per_check == {"one": 1.0, "two": 0.5}


def test_statements_for_a_judge_are_one_number_whatever_their_ids() -> None:
    """c1 of one prompt says nothing about c1 of another, and ids of one's own have no end."""
    groups = []
    for names, score in ((("c1", "c2"), Scored(0.5, (), ("c1",), ("c2",))),
                         (("c1", "own"), Scored(1.0, (), ("c1", "own"), ()))):  # fmt: skip
        criteria = tuple(Criterion(name, "judge", description="It is so.") for name in names)
        group = scored_group([score])
        prompt = replace(group.group.prompt, rubric=Rubric(criteria))
        groups.append(replace(group, group=replace(group.group, prompt=prompt)))
    assert summarize(groups).per_check == {"judge": 0.75}


def test_summary_without_any_score_is_an_error_not_a_zero() -> None:
    with pytest.raises(RuntimeError, match="none of 1 responses could be scored: 1 x judge down"):
        summarize([scored_group([Unscored("judge down")])])
