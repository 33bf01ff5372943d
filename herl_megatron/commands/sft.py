"""Supervised fine-tuning with the same Megatron trainer: the quickstart's warm start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import numpy as np
from rich import get_console

from herl_megatron.cluster.nodes import open_nodes
from herl_megatron.cluster.placement import demand
from herl_megatron.cluster.reserve import reserve, run_device
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.commands.results import TuneResult
from herl_megatron.commands.tables import print_policy, sft_table
from herl_megatron.config.paths import on_any_node
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.data.chat import ChatTokenizer, open_chat_tokenizer
from herl_megatron.data.prompt_source import SftRow, load_sft_rows
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.model_files import check_model, check_vocabulary
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


@asynccontextmanager
async def open_trainer(
    config: Config, folder: RunFolder, *, purpose: Purpose, optimizer_steps: int
) -> AsyncIterator[TrainerGroup]:
    """The trainer without engines, in a Ray session of its own; both end with the block.

    folder: of the run, whose record says where the trainer is.

    Raises:
        WorkerError, ValueError: a rank did not start, or the model or layout is not supported.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(ray_session(config.cluster, run=folder.path))
        device = run_device(config.cluster)
        reservation = reserve(
            demand(config.megatron, None),
            device=device,
            start_timeout_s=config.cluster.start_timeout_s,
        )
        stack.callback(reservation.release)
        nodes = await open_nodes(reservation.placement, model=config.model, run_folder=folder.path)
        stack.push_async_callback(nodes.close)
        folder.saw_nodes(nodes.records)
        trainer = await start_trainer(
            trainer_sections(on_any_node(config), purpose=purpose),
            slots=reservation.placement.trainer,
            device=device,
            optimizer_steps=optimizer_steps,
        )
        stack.callback(trainer.stop)
        yield trainer


async def sft(config: Config) -> TuneResult:
    """Fine-tune on `sft.data` and export the policy.

    Raises:
        ValueError: bad rows, model or layout (before anything is started where possible).
        WorkerError: a trainer rank died or took too long.
    """
    check_model(config.model, trains=True)
    tokenizer = open_chat_tokenizer(config.model, config.data)
    check_vocabulary(tokenizer, config.model)
    rows = [
        to_token_row(row, tokenizer, max_tokens=config.sft.max_tokens)
        for row in load_sft_rows(config.sft.data)
    ]
    first: dict[str, float] = {}
    last = first
    with RunFolder.create(config, purpose="sft") as folder:
        async with open_trainer(
            config, folder, purpose="sft", optimizer_steps=config.sft.step_count
        ) as trainer:
            stream = batches(
                rows,
                size=config.sft.rows_per_step,
                seed=config.run.seed,
                shuffle=config.data.shuffle,
            )
            for step in folder.progress(range(config.sft.step_count), "SFT"):
                metrics = await trainer.sft_step(next(stream))
                folder.log(step, {f"sft/{name}": value for name, value in metrics.items()})
                first, last = first or metrics, metrics
            await trainer.export(folder.policy)
    table = sft_table(first, last)
    print_policy(table, folder=folder.path, policy=folder.policy, console=get_console())
    return TuneResult(folder.path, folder.policy, first, last)
