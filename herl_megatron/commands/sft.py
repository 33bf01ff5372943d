"""Supervised fine-tuning with the same Megatron trainer: the quickstart's warm start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.commands.results import TuneResult
from herl_megatron.commands.tune import tune
from herl_megatron.config.loop_keys import loop_keys
from herl_megatron.config.schema import Config
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompt_source import SftRow, load_sft_rows
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.tuning_inputs import load_tuning_inputs, open_tokenizer
from herl_megatron.types import TokenRow

T = TypeVar("T")


def to_token_row(
    row: SftRow, tokenizer: ChatTokenizer, *, max_tokens: int, limit: str = "sft.max_tokens"
) -> TokenRow:
    """The row whose response is the last message; context and response in tokens.

    limit: the key that gave `max_tokens`, for the message.

    Raises:
        ValueError: the row is longer than `max_tokens` (nothing is cut), or the chat template
            refuses its messages.
    """
    try:
        context, response = tokenizer.training_ids(row.messages)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    if len(context) + len(response) > max_tokens:
        raise ValueError(
            f"{row.where}: the row has {len(context)} + {len(response)} tokens, context and answer;"
            f" {limit} is {max_tokens}: raise it or drop the row"
        )
    return TokenRow(row.where, context, response)


def batches(rows: Sequence[T], *, size: int, seed: int, shuffle: bool) -> Iterator[tuple[T, ...]]:
    """Endless batches of `size` rows, no row twice in an epoch.

    With `shuffle` each epoch has its own seeded order, else the file's.
    """
    generator = np.random.default_rng(seed)
    order: list[int] = []
    while True:
        while len(order) < size:
            epoch = np.arange(len(rows))
            order += (generator.permutation(epoch) if shuffle else epoch).tolist()
        chosen, order = order[:size], order[size:]
        yield tuple(rows[index] for index in chosen)


class SftTask:
    """A step is one batch of rows."""

    def __init__(self, rows: Sequence[TokenRow], *, size: int, seed: int, shuffle: bool) -> None:
        """size: rows of a step; their order as in `batches`."""
        self._stream = enumerate(batches(rows, size=size, seed=seed, shuffle=shuffle))

    async def of_start(self, trainer: TrainerGroup, folder: RunFolder) -> None:
        """Nothing."""

    async def step(self, trainer: TrainerGroup, step: int) -> dict[str, float]:
        """See `TuningTask`; steps come in order, and a resumed run passes over the first ones."""
        for at, rows in self._stream:
            assert at <= step, f"the rows of step {step} have gone by"
            if at == step:
                metrics = await trainer.sft_step(rows)
                return {f"sft/{name}": value for name, value in metrics.items()}
        raise AssertionError("batches have no end")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: which rows are a step's follows from the rows, the seed and the step alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


async def sft(config: Config) -> TuneResult:
    """Fine-tune on `sft.data` and export the policy.

    Raises:
        ValueError: bad rows, model or layout (before anything is started where possible).
        SavedForResume, WorkerError: as `tune`.
    """
    tokenizer = open_tokenizer(config)
    loaded = load_sft_rows(config.sft.data)
    rows = [to_token_row(row, tokenizer, max_tokens=config.sft.max_tokens) for row in loaded]
    loop = loop_keys(config, purpose="sft")
    inputs = load_tuning_inputs(
        config,
        tokenizer,
        loop=loop,
        rows=[[asdict(message) for message in row.messages] for row in loaded],
        seen={row.messages[:-1]: row.where for row in loaded},
    )
    task = SftTask(
        rows,
        size=config.sft.rows_per_step,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )
    return await tune(config, inputs, task, loop=loop)
