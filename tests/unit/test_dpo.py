"""A DPO step on the driver: what the trainer is asked for, with numbers by hand."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from herl_megatron.commands.dpo import DpoTask, PairRows, dpo_step, sequence_log_probs, to_pair_rows
from herl_megatron.config.schema import DPOConfig
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.preference_pairs import PreferencePair
from herl_megatron.types import CoefficientRow, FloatArray, IntArray, Message, TokenRow


class FakeTokenizer(ChatTokenizer):
    """Two context tokens and one response token per character of the answer."""

    def __init__(self) -> None:  # reads no folder
        pass

    def training_ids(self, messages: Sequence[Message]) -> tuple[IntArray, IntArray]:
        return np.arange(2, dtype=np.int32), np.arange(len(messages[-1].content), dtype=np.int32)


class FakeTrainer:
    """Every token of row i has log-prob -(i + 1)."""

    def __init__(self) -> None:
        self.rows: Sequence[CoefficientRow] = ()
        self.asked: list[str] = []

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        self.asked += [row.prompt_id for row in rows]
        return [
            np.full(len(row.response_token_ids), -(i + 1.0), np.float32)
            for i, row in enumerate(rows)
        ]

    async def coefficient_step(self, rows: Sequence[CoefficientRow]) -> dict[str, float]:
        self.rows = rows
        return {"loss": 123.0, "grad_norm": 2.0}


def pair(name: str, chosen: str, rejected: str) -> PairRows:
    row = PreferencePair(f"f:{name}", name, (Message("user", "x"),), chosen, rejected)
    return to_pair_rows(row, FakeTokenizer(), max_tokens=6)


def test_a_long_answer_is_refused_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"f:a \(rejected\): .* 2 \+ 5 .* dpo\.max_tokens is 6"):
        pair("a", "1234", "12345")


def test_a_step_weighs_each_row_with_its_pairs_slope() -> None:
    """Log-probs -3, -4 and -6, -4; reference -4, -5 and -5, -5. So h = (1 - 1) = 0 and
    h = (-1 - 1) = -2; with beta 0.5 the slopes are -0.25 and -0.5 / (1 + e^-1), over two pairs."""
    trainer = FakeTrainer()
    two = [pair("a", "123", "12"), pair("b", "12", "1")]
    log_probs = asyncio.run(sequence_log_probs(trainer, two))
    assert log_probs.tolist() == [[-3.0, -4.0], [-6.0, -4.0]]
    reference = torch.tensor([[-4.0, -5.0], [-5.0, -5.0]], dtype=torch.float64)
    metrics = asyncio.run(dpo_step(trainer, two, reference, DPOConfig(beta=0.5)))
    lost = 0.25 / (1 + math.exp(-1))
    assert [row.coefficient for row in trainer.rows] == pytest.approx([0.125, -0.125, lost, -lost])
    assert [len(row.response_token_ids) for row in trainer.rows] == [3, 2, 2, 1]
    assert metrics["loss"] == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)
    assert metrics["chosen_reward"] == pytest.approx((0.5 - 0.5) / 2)
    assert metrics["rejected_reward"] == pytest.approx(0.5)
    assert metrics["margin"] == pytest.approx(-0.5) and metrics["accuracy"] == 0.0
    assert (metrics["chosen_log_prob"], metrics["rejected_log_prob"]) == (-4.5, -4.0)
    assert metrics["grad_norm"] == 2.0


class Bar:
    """A folder that shows no progress."""

    def progress(self, steps: range, label: str) -> Iterator[int]:
        return iter(steps)


class Odd(FakeTrainer):
    """Log-probs that no short decimal number is."""

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        values = await super().log_probs(rows)
        return [(value / 3).astype(np.float32) for value in values]


FIVE = [pair(name, "123", "1") for name in "abcde"]


def task(steps: int) -> DpoTask:
    return DpoTask(FIVE, DPOConfig(steps=steps, pairs_per_step=2), seed=0, shuffle=False)


def test_the_reference_is_kept_bit_for_bit_and_only_asked_for_what_is_missing() -> None:
    """Two of five pairs a step, in order: three steps use all, the third one again the first; one
    step uses two. Its checkpoint has those, and a run that is made longer asks for the others."""
    trainer, short = Odd(), task(1)
    asyncio.run(short.of_start(trainer, Bar()))
    assert [name.partition(" ")[0] for name in trainer.asked] == ["f:a", "f:a", "f:b", "f:b"]
    state = json.loads(json.dumps(short.state_dict(), allow_nan=False))
    longer = task(3)
    longer.load_state_dict(state)
    assert torch.equal(longer.reference[:2], short.reference[:2])
    assert longer.reference[2:].isnan().all() and short.reference[0, 0] != -1.0
    trainer.asked.clear()
    asyncio.run(longer.of_start(trainer, Bar()))
    assert {name.partition(" ")[0] for name in trainer.asked} == {"f:c", "f:d", "f:e"}
    assert not longer.reference.isnan().any()
    trainer.asked.clear()
    asyncio.run(longer.of_start(trainer, Bar()))
    assert trainer.asked == []


def test_a_resumed_step_compares_with_the_weights_that_the_run_began_with() -> None:
    """The trainer is at -1 and -2 a token by now; had the reference been asked again, margin and
    rewards would be 0. Kept were -3 and -2 of the chosen and the rejected, beta is 0.1: rewards
    0.1 (3 * -1 + 3) = 0 and 0.1 (1 * -2 + 2) = 0 of the first pair, 0.1 (3 * -3 + 3) = -0.6 and
    0.1 (1 * -4 + 2) = -0.2 of the second."""
    begun, resumed = task(1), task(1)
    begun.reference[:2] = torch.tensor([[-3.0, -2.0], [-3.0, -2.0]])
    resumed.load_state_dict(begun.state_dict())
    trainer = FakeTrainer()
    asyncio.run(resumed.of_start(trainer, Bar()))
    metrics = asyncio.run(resumed.step(trainer, 0))
    assert metrics["dpo/chosen_reward"] == pytest.approx((0.0 - 0.6) / 2)
    assert metrics["dpo/rejected_reward"] == pytest.approx((0.0 - 0.2) / 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("reference"),
        lambda state: state.update(pairs="*"),
        lambda state: state.update(pairs=3),
        lambda state: state.update(reference=state["reference"][:-8]),
        lambda state: state.update(pairs="CQAAAAoAAAA="),  # 9 and 10
        lambda state: state.update(pairs="/////wAAAAA="),  # -1 and 0
        lambda state: state.update(reference="AAAAAAAA+H8=" * 4),
        lambda state: state.update(
            reference=base64.b64encode(np.full(4, np.nan).tobytes()).decode()
        ),
    ],
)
def test_what_is_no_reference_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    begun = task(1)
    begun.reference[:2] = torch.tensor([[-3.0, -2.0], [-3.0, -2.0]])
    state = begun.state_dict()
    change(state)
    with pytest.raises(ValueError, match="cannot resume: the reference's log-probs"):
        task(1).load_state_dict(state)
