"""Row lengths -> data-parallel (DP) ranks and micro-batches under a token budget.

Pure Python and deterministic: the same lengths give the same plan on every machine. What
`plan_micro_batches` promises:

1. every row is in exactly one micro-batch of one rank;
2. a micro-batch stays within the token budget, padding included; only a row that is above the
   budget by itself exceeds it, and then it travels alone;
3. every rank has the same number of micro-batches, at least one, and a multiple of
   `count_divisor` (interleaved pipelines need a multiple of the pipeline size);
4. a micro-batch without rows, `()`, appears only on a rank that has fewer rows than micro-batches;
   `batching.pack` turns it into a dummy row of weight 0;
5. ranks get shares of sum(L) and of sum(L^2) (linear layers and attention) that are as even as
   the longest-first greedy rule makes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.fp8 import token_multiple
from herl_megatron.types import TokenRow, TrainRow

MICRO_BATCH_COST_TOKENS = 512
"""What one more micro-batch costs, in padded tokens: the rate at which bucketing trades less
padding for more micro-batches. Measured with a 0.6M-parameter model on CPU: about 200 tokens at TP1
and 900 at TP2 (gloo); not measured on a GPU."""

MicroBatches = tuple[tuple[int, ...], ...]
Value = TypeVar("Value")
Row = TypeVar("Row", bound=TokenRow, covariant=True)


@dataclass(frozen=True, eq=False)
class Shard(Generic[Row]):
    """What one DP rank receives for one optimizer step or one log-prob pass.

    row_indices: place of each of `rows` in the list that `make_shards` was given.
    total_rows: length of that list.
    micro_batches: positions in `rows`; `()` is a micro-batch without rows.
    loss_tokens, loss_rows: response tokens and rows over all DP ranks and micro-batches, the
        denominators of the loss.
    block_means: of each of `rows`, the mean response tokens of a row of its block, whichever ranks
        have the others (`block_mean_tokens`); empty without blocks.
    """

    rows: tuple[Row, ...]
    row_indices: tuple[int, ...]
    total_rows: int
    micro_batches: MicroBatches
    loss_tokens: int
    loss_rows: int
    block_means: tuple[float, ...] = ()


def length_multiple(megatron: MegatronConfig) -> int:
    """Multiple to which rows are padded, in tokens: context parallelism cuts them into 2 * CP equal
    chunks, sequence parallelism what a context-parallel rank holds into TP equal parts, each of
    which FP8 cuts into blocks."""
    cp, tp = megatron.context_parallel, megatron.tensor_parallel
    parts = token_multiple(megatron.fp8) * (tp if megatron.sequence_parallel else 1)
    return parts if cp == 1 else cp * math.lcm(2, parts)


def padded_length(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    dp: int,
    token_budget: int,
    packing: bool,
    multiple: int = 1,
    count_divisor: int = 1,
) -> tuple[MicroBatches, ...]:
    """Micro-batches per DP rank as indices into `lengths`; the module docstring has the promises.

    Args:
        lengths: tokens of each row, context plus response.
        dp: number of DP ranks.
        token_budget: tokens of one micro-batch, padding included.
        packing: rows one after the other (sum of padded lengths counts) instead of bucketed
            (rows times longest padded length counts).
        multiple: see `length_multiple`.
        count_divisor: the number of micro-batches is a multiple of this.
    """
    padded = [padded_length(length, multiple) for length in lengths]
    cut = _pack_rows if packing else _bucket_rows
    ranks = [cut(rows, padded, token_budget) for rows in _balance(padded, dp)]
    most = max(1, max(len(micro_batches) for micro_batches in ranks))
    count = padded_length(most, count_divisor)
    return tuple(tuple(_split_to(rank, count, padded)) for rank in ranks)


def _balance(lengths: Sequence[int], dp: int) -> list[list[int]]:
    """Rows of each rank, longest first: each row goes where the larger of the rank's shares of
    sum(L) and sum(L^2) stays smallest."""
    total = sum(lengths)
    total_squared = sum(length * length for length in lengths)
    linear, squared = [0.0] * dp, [0.0] * dp
    ranks: list[list[int]] = [[] for _ in range(dp)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        share = lengths[index] / total
        share_squared = lengths[index] ** 2 / total_squared
        rank = min(range(dp), key=lambda r: (max(linear[r] + share, squared[r] + share_squared), r))
        linear[rank] += share
        squared[rank] += share_squared
        ranks[rank].append(index)
    return ranks


def _bucket_rows(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut rows (longest first) into runs of the least total cost, by dynamic programming.

    Cost of a run = rows times longest length + `MICRO_BATCH_COST_TOKENS`.
    """
    best = [0.0] + [float("inf")] * len(rows)
    start_of = [0] * (len(rows) + 1)
    for start in range(len(rows)):
        longest = lengths[rows[start]]
        fits = max(1, budget // longest)
        for end in range(start + 1, min(start + fits, len(rows)) + 1):
            cost = best[start] + (end - start) * longest + MICRO_BATCH_COST_TOKENS
            if cost < best[end]:
                best[end], start_of[end] = cost, start
    runs = []
    end = len(rows)
    while end > 0:
        runs.append(list(rows[start_of[end] : end]))
        end = start_of[end]
    return runs[::-1]


def _pack_rows(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit decreasing bin packing (rows come longest first)."""
    bins: list[list[int]] = []
    free: list[int] = []
    for row in rows:
        place = next((i for i, room in enumerate(free) if room >= lengths[row]), None)
        if place is None:
            bins.append([row])
            free.append(budget - lengths[row])
        else:
            bins[place].append(row)
            free[place] -= lengths[row]
    return bins


def _split_to(
    micro_batches: list[list[int]], count: int, lengths: Sequence[int]
) -> list[tuple[int, ...]]:
    """Exactly `count` micro-batches: halve the largest that can be halved, then add empty ones.

    A half of a bucket or of a bin fits the budget since the whole did.
    """
    result = [tuple(rows) for rows in micro_batches]
    while len(result) < count:
        splittable = [i for i, rows in enumerate(result) if len(rows) > 1]
        if not splittable:
            result.append(())
            continue
        place = max(splittable, key=lambda i: (sum(lengths[row] for row in result[i]), -i))
        rows = result[place]
        middle = len(rows) // 2
        result[place : place + 1] = [rows[:middle], rows[middle:]]
    return result


def block_mean_tokens(row_tokens: Sequence[int], block_rows: int) -> list[float]:
    """For each row the mean response tokens over the rows of its block (`algos.reductions`).

    A block is `block_rows` rows that follow one another, the last one what is left.

    Args:
        row_tokens: response tokens of each row of the global batch, in its order.
        block_rows: rows of a block, at least 1.
    """
    means: list[float] = []
    for start in range(0, len(row_tokens), block_rows):
        block = row_tokens[start : start + block_rows]
        means += [sum(block) / len(block)] * len(block)
    return means


def make_shards(
    rows: Sequence[Row], *, megatron: MegatronConfig, block_rows: int | None = None
) -> list[Shard[Row]]:
    """One `Shard` per DP rank from the rows of one optimizer step or one log-prob pass.

    Rows that have no share in the loss are left out, so nobody computes them.

    Args:
        rows: the rows of the global batch.
        megatron: layout and token budget.
        block_rows: of `algorithm.aggregation: block_token_mean`, rows of a block; blocks follow the
            order of `rows`, those left out not counted.

    Raises:
        ValueError: a row has no context or no response token that was drawn, or not one log-prob
            per token.
    """
    for row in rows:
        _check_row(row)
    active = [index for index, row in enumerate(rows) if row.in_loss]
    interleaved = megatron.virtual_pipeline is not None
    plan = plan_micro_batches(
        [rows[index].tokens for index in active],
        dp=megatron.data_parallel,
        token_budget=megatron.micro_batch_tokens,
        packing=megatron.packing,
        multiple=length_multiple(megatron),
        count_divisor=megatron.pipeline_parallel if interleaved else 1,
    )
    tokens = [len(rows[index].targets) for index in active]
    means = block_mean_tokens(tokens, block_rows) if block_rows else []
    mean_of = dict(zip(active, means, strict=True)) if means else {}
    shards = []
    for micro_batches in plan:
        order = [active[place] for micro_batch in micro_batches for place in micro_batch]
        shards.append(
            Shard(
                rows=tuple(rows[index] for index in order),
                row_indices=tuple(order),
                total_rows=len(rows),
                micro_batches=_renumber(micro_batches),
                loss_tokens=sum(tokens),
                loss_rows=len(active),
                block_means=tuple(mean_of[index] for index in order) if mean_of else (),
            )
        )
    return shards


def _check_row(row: TokenRow) -> None:
    context, response = len(row.context_token_ids), len(row.targets)
    if not context or not response:
        raise ValueError(
            f"row of prompt {row.prompt_id!r} has {context} context and {response} response tokens;"
            " both must be at least 1"
        )
    if not isinstance(row, TrainRow):
        return
    log_probs = (row.rollout_log_probs, row.old_log_probs, row.ref_log_probs)
    counts = [len(values) for values in log_probs if values is not None]
    if any(count != response for count in counts):
        raise ValueError(
            f"row of prompt {row.prompt_id!r} has {response} response tokens but log-probs of"
            f" {counts} tokens; there must be one per response token"
        )


def _renumber(micro_batches: MicroBatches) -> MicroBatches:
    """The same micro-batches with rows numbered in the order in which they appear."""
    numbered, start = [], 0
    for micro_batch in micro_batches:
        numbered.append(tuple(range(start, start + len(micro_batch))))
        start += len(micro_batch)
    return tuple(numbered)


def gather_rows(
    shards: Sequence[Shard[TokenRow]], values: Sequence[Sequence[Value]]
) -> list[Value | None]:
    """Per-row results of the DP ranks in the global order; None for rows that did not travel.

    Args:
        shards: as `make_shards` returned them.
        values: for each shard, one value per row of the shard.
    """
    result: list[Value | None] = [None] * shards[0].total_rows
    for shard, shard_values in zip(shards, values, strict=True):
        for index, value in zip(shard.row_indices, shard_values, strict=True):
            result[index] = value
    return result
