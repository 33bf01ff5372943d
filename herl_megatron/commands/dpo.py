"""`herl dpo`: direct preference optimisation with the same Megatron trainer.

The reference is the model as it starts. Its log-probs of the pairs that will be used are computed
once before the first step, two numbers a pair, so no second model is in memory. A step is two
passes, see `algos.losses_dpo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from rich import get_console

from herl_megatron.algos.losses_dpo import PairLogProbs, pair_loss
from herl_megatron.commands.results import TuneResult
from herl_megatron.commands.sft import batches, open_trainer, to_token_row
from herl_megatron.commands.tables import dpo_table, print_policy
from herl_megatron.config.schema import Config, DPOConfig
from herl_megatron.data.chat import ChatTokenizer, open_chat_tokenizer
from herl_megatron.data.preference_pairs import PreferencePair, load_pairs
from herl_megatron.data.prompt_source import SftRow
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.model_files import check_model, check_vocabulary
from herl_megatron.types import CoefficientRow, FloatArray, Message, TokenRow


@dataclass(frozen=True, eq=False)
class PairRows:
    """A pair as rows of token ids."""

    chosen: TokenRow
    rejected: TokenRow


class PairTrainer(Protocol):
    """What is needed of `cluster.trainer.TrainerGroup`."""

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        """Response log-probs, `[response]` each, at temperature 1."""
        ...

    async def coefficient_step(self, rows: Sequence[CoefficientRow]) -> dict[str, float]:
        """One optimizer step on minus the sum of `coefficient` times response log-prob."""
        ...


def to_pair_rows(pair: PreferencePair, tokenizer: ChatTokenizer, *, max_tokens: int) -> PairRows:
    """Both answers as responses to the prompt, ended by the turn's end token.

    Raises ValueError for one longer than `max_tokens`, as `sft.to_token_row`.
    """
    chosen, rejected = (
        to_token_row(
            SftRow(f"{pair.where} ({name})", (*pair.messages, Message("assistant", text))),
            tokenizer,
            max_tokens=max_tokens,
            limit="dpo.max_tokens",
        )
        for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    return PairRows(chosen, rejected)


async def sequence_log_probs(trainer: PairTrainer, pairs: Sequence[PairRows]) -> torch.Tensor:
    """Log-prob of each whole response under the current weights: `[pairs, 2]` float64, chosen and
    rejected."""
    values = await trainer.log_probs(_rows(pairs))
    sums = [value.astype(np.float64).sum() for value in values]
    return torch.tensor(sums, dtype=torch.float64).reshape(-1, 2)


async def dpo_step(
    trainer: PairTrainer, pairs: Sequence[PairRows], reference: torch.Tensor, config: DPOConfig
) -> dict[str, float]:
    """One optimizer step on the mean loss of `pairs`; `reference` are their log-probs under the
    reference, as `sequence_log_probs` gives them.

    Returns the loss and its parts before the step, and the trainer's numbers.
    """
    current = await sequence_log_probs(trainer, pairs)
    log_probs = PairLogProbs(current[:, 0], current[:, 1], reference[:, 0], reference[:, 1])
    loss = pair_loss(
        log_probs, name=config.loss, beta=config.beta, label_smoothing=config.label_smoothing
    )
    learned = await trainer.coefficient_step(_weighted(pairs, loss.slopes / len(pairs)))
    chosen, rejected = current.mean(0).tolist()
    return learned | loss.metrics() | {"chosen_log_prob": chosen, "rejected_log_prob": rejected}


async def dpo(config: Config) -> TuneResult:
    """Learn from `dpo.data` and export the policy.

    Raises:
        ValueError: bad rows, model or layout (before anything is started where possible).
        WorkerError: a trainer rank died or took too long.
    """
    check_model(config.model, trains=True)
    tokenizer = open_chat_tokenizer(config.model, config.data)
    check_vocabulary(tokenizer, config.model)
    pairs = [
        to_pair_rows(pair, tokenizer, max_tokens=config.dpo.max_tokens)
        for pair in load_pairs(config.dpo.data)
    ]
    steps = list(_batches(config, len(pairs)))
    first: dict[str, float] = {}
    last = first
    used = list(dict.fromkeys(number for step in steps for number in step))
    with RunFolder.create(config, purpose="dpo") as folder:
        async with open_trainer(
            config, folder, purpose="dpo", optimizer_steps=config.dpo.step_count
        ) as trainer:
            reference = torch.full((len(pairs), 2), torch.nan, dtype=torch.float64)
            size = config.dpo.pairs_per_step
            for start in folder.progress(range(0, len(used), size), "reference"):
                numbers = used[start : start + size]
                reference[numbers] = await sequence_log_probs(trainer, [pairs[n] for n in numbers])
            for step in folder.progress(range(config.dpo.step_count), "DPO"):
                numbers = list(steps[step])
                metrics = await dpo_step(
                    trainer, [pairs[n] for n in numbers], reference[numbers], config.dpo
                )
                folder.log(step, {f"dpo/{name}": value for name, value in metrics.items()})
                first, last = first or metrics, metrics
            await trainer.export(folder.policy)
    table = dpo_table(first, last)
    print_policy(table, folder=folder.path, policy=folder.policy, console=get_console())
    return TuneResult(folder.path, folder.policy, first, last)


def _batches(config: Config, pairs: int) -> Iterator[tuple[int, ...]]:
    """The pairs of each step, by number."""
    stream = batches(
        range(pairs),
        size=config.dpo.pairs_per_step,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )
    return islice(stream, config.dpo.step_count)


def _rows(pairs: Sequence[PairRows]) -> list[TokenRow]:
    return [row for pair in pairs for row in (pair.chosen, pair.rejected)]


def _weighted(pairs: Sequence[PairRows], slopes: torch.Tensor) -> list[CoefficientRow]:
    """The pairs' rows with what their log-probs are multiplied with: d(-loss)/d(log-prob)."""
    return [
        CoefficientRow(row.prompt_id, row.context_token_ids, row.response_token_ids, coefficient)
        for pair, slope in zip(pairs, slopes.tolist(), strict=True)
        for row, coefficient in ((pair.chosen, -slope), (pair.rejected, slope))
    ]
