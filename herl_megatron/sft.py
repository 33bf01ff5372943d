"""Supervised fine-tuning with the same Megatron trainer: the quickstart's warm start."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from herl_megatron.cluster.nodes import open_nodes
from herl_megatron.cluster.reserve import reserve, run_device
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.config.schema import Config
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompts import SftRow, load_sft_rows
from herl_megatron.observability.run_folder import RunFolder
from herl_megatron.types import TrainRow

logger = logging.getLogger(__name__)
T = TypeVar("T")


def to_train_row(row: SftRow, tokenizer: ChatTokenizer, *, max_tokens: int) -> TrainRow:
    """The row whose response is the last message; context and response in tokens.

    Raises:
        ValueError: the row is longer than `max_tokens` (data.max_experience_tokens plus
            rollout.max_response_tokens); nothing is cut.
    """
    context, response = tokenizer.training_ids(row.messages)
    if len(context) + len(response) > max_tokens:
        raise ValueError(
            f"{row.where}: the row has {len(context)} + {len(response)} tokens, the limit is"
            f" {max_tokens} (data.max_experience_tokens + rollout.max_response_tokens);"
            " raise one of the two or drop the row"
        )
    return TrainRow(
        prompt_id=row.where,
        context_token_ids=context,
        response_token_ids=response,
        rollout_log_probs=np.zeros(len(response), np.float32),
        reward=0.0,
        advantage=0.0,
    )


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


@asynccontextmanager
async def open_trainer(config: Config, *, optimizer_steps: int) -> AsyncIterator[TrainerGroup]:
    """The trainer without engines, in a Ray session of its own; both end with the block.

    Raises:
        WorkerError, ValueError: a rank did not start, or the model or layout is not supported.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(ray_session(config.cluster))
        device = run_device(config.cluster)
        reservation = reserve(config, device=device, samples=False)
        stack.callback(reservation.release)
        nodes = await open_nodes(config, reservation.placement)
        stack.push_async_callback(nodes.close)
        trainer = await start_trainer(
            config,
            slots=reservation.placement.trainer,
            device=device,
            optimizer_steps=optimizer_steps,
        )
        stack.callback(trainer.stop)
        yield trainer


async def sft(config: Config) -> Path:
    """Fine-tune on `sft.data` and export; returns the folder of the exported policy.

    Raises:
        ValueError: bad rows, model or layout (before anything is started where possible).
        WorkerError: a trainer rank died or took too long.
    """
    tokenizer = ChatTokenizer(config.model.path)
    limit = config.data.max_experience_tokens + config.rollout.max_response_tokens
    rows = [
        to_train_row(row, tokenizer, max_tokens=limit) for row in load_sft_rows(config.sft.data)
    ]
    with RunFolder.create(config) as folder:
        async with open_trainer(config, optimizer_steps=config.sft.steps) as trainer:
            stream = batches(
                rows,
                size=config.sft.rows_per_step,
                seed=config.run.seed,
                shuffle=config.data.shuffle,
            )
            for step in folder.progress(range(config.sft.steps), "SFT"):
                metrics = await trainer.sft_step(next(stream))
                folder.log(step, {f"sft/{name}": value for name, value in metrics.items()})
            await trainer.export(folder.policy)
    logger.info("policy after SFT: %s", folder.policy)
    return folder.policy
