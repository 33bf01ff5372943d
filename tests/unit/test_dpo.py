"""A DPO step on the driver: what the trainer is asked for, with numbers by hand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from herl_megatron.commands.dpo import PairRows, dpo_step, sequence_log_probs, to_pair_rows
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

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
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
