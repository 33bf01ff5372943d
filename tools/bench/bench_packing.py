"""Padding and balance of micro-batches on lognormal row lengths: counts, nothing is timed.

    python tools/bench/bench_packing.py                     # 512 rows per step, 50 seeds, seconds

Row lengths are a prompt's plus a response's, both lognormal (medians `--prompt` and `--response`,
sigma 0.6 and 1.0, cut off at 1,024 and `--longest` tokens). For each layout and each way to batch:
tokens computed over tokens of the rows, and the FLOPs of the busiest data-parallel rank over the
mean rank's, of padded rows and empty micro-batches too. FLOPs of a row of L tokens are the model's
linear layers times L and its causal attention times L^2 (`plan.timing`). The median and the worst
of the seeds are shown; the goals are held against the worst.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from herl_megatron.batching.shards import length_multiple, padded_length, plan_micro_batches
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.flops import forward_flops_per_token
from herl_megatron.models.hf_config import read_architecture
from tools.bench._bench import Row, machine, report
from tools.bench._out import new_file

_MODEL = Path(__file__).resolve().parents[2] / "configs/shapes/Qwen2.5-7B-Instruct.json"
_PADDING_GOAL, _BALANCE_GOAL = 1.05, 1.10
_LAYOUTS = {
    "DP8": dict(data_parallel=8),
    "DP32": dict(data_parallel=32),
    "TP8 SP DP8": dict(data_parallel=8, tensor_parallel=8, sequence_parallel=True),
    "TP2 SP CP4 DP8": dict(
        data_parallel=8, tensor_parallel=2, sequence_parallel=True, context_parallel=4
    ),
    "PP4 VPP2 DP8": dict(data_parallel=8, pipeline_parallel=4, virtual_pipeline=2),
}
_DUMMY_TOKENS = 2


@dataclass(frozen=True)
class Counts:
    """Of one step: tokens computed / tokens of rows, FLOPs of the busiest rank / of the mean."""

    padding: float
    balance: float
    micro_batches: int


def row_lengths(options: argparse.Namespace, seed: int) -> list[int]:
    """Tokens of each row, context plus response."""
    rng = np.random.default_rng(seed)
    prompts = np.repeat(
        rng.lognormal(np.log(options.prompt), 0.6, options.rows // options.group), options.group
    )
    responses = rng.lognormal(np.log(options.response), 1.0, len(prompts))
    lengths = prompts.clip(1, 1024).astype(int) + responses.clip(1, options.longest).astype(int)
    return [int(length) for length in lengths]


@dataclass(frozen=True)
class RowFlops:
    """Forward FLOPs of a row of L tokens: `linear * L + squared * L^2`."""

    linear: float
    squared: float

    def of(self, tokens: int) -> float:
        """One row of so many tokens."""
        return self.linear * tokens + self.squared * tokens * tokens


def row_flops(architecture: Architecture) -> RowFlops:
    """The model's, from the planner's FLOPs per token at two row lengths."""
    linear = forward_flops_per_token(architecture, 0)
    return RowFlops(linear, forward_flops_per_token(architecture, 1) - linear)


def count(lengths: list[int], megatron: MegatronConfig, row: RowFlops) -> Counts:
    """Plan the step and add up what its ranks compute."""
    multiple = length_multiple(megatron)
    divisor = 1 if megatron.virtual_pipeline is None else megatron.pipeline_parallel
    plan = plan_micro_batches(
        lengths,
        dp=megatron.data_parallel,
        token_budget=megatron.micro_batch_tokens,
        packing=megatron.packing,
        multiple=multiple,
        count_divisor=divisor,
    )
    tokens, flops = 0, []
    for rank in plan:
        computed = []  # tokens of every row, padding included
        for rows in rank:
            padded = [padded_length(lengths[place], multiple) for place in rows]
            if not rows:
                padded = [padded_length(_DUMMY_TOKENS, multiple)]
            computed += padded if megatron.packing else [max(padded)] * len(padded)
        tokens += sum(computed)
        flops.append(sum(row.of(tokens_of_row) for tokens_of_row in computed))
    return Counts(tokens / sum(lengths), max(flops) * len(flops) / sum(flops), len(plan[0]))


def measure(options: argparse.Namespace) -> dict[str, list[Counts]]:
    """Counts of every layout and way to batch under every seed."""
    flops = row_flops(read_architecture(options.model))
    results: dict[str, list[Counts]] = {}
    for layout, keys in _LAYOUTS.items():
        for packing in (True, False):
            megatron = MegatronConfig.model_validate(
                {**keys, "packing": packing, "micro_batch_tokens": options.budget}
            )
            results[f"{'packed' if packing else 'padded'}, {layout}"] = [
                count(row_lengths(options, seed), megatron, flops) for seed in range(options.seeds)
            ]
    return results


def table(results: dict[str, list[Counts]], unbatched: list[float]) -> list[Row]:
    """Median and worst of each; the padding goal is packing's."""
    rows = [Row("every row padded to the longest: tokens computed / real", _text(unbatched))]
    for name, counts in results.items():
        padding = [one.padding for one in counts]
        balance = [one.balance for one in counts]
        batches = f" ({np.median([one.micro_batches for one in counts]):.0f} micro-batches)"
        goal = name.startswith("packed")
        rows.append(
            Row(
                f"{name}{batches}: tokens computed / real",
                _text(padding),
                f"<= {_PADDING_GOAL}" if goal else "",
                max(padding) <= _PADDING_GOAL if goal else None,
            )
        )
        met = max(balance) <= _BALANCE_GOAL
        what = f"{name}: FLOPs of DP ranks, max / mean"
        rows.append(Row(what, _text(balance), f"<= {_BALANCE_GOAL:.2f}", met))
    return rows


def _text(values: list[float]) -> str:
    return f"{np.median(values):.3f}, worst {max(values):.3f}"


def main() -> None:
    """Parse the arguments, count, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--rows", type=int, default=512, help="of one optimizer step")
    parser.add_argument("--group", type=int, default=8, help="rows that share a prompt's length")
    parser.add_argument("--prompt", type=float, default=200, help="median tokens")
    parser.add_argument("--response", type=float, default=600, help="median tokens")
    parser.add_argument("--longest", type=int, default=4096, help="tokens of a response")
    parser.add_argument("--budget", type=int, default=16384, help="megatron.micro_batch_tokens")
    parser.add_argument("--model", default=str(_MODEL), help="config.json of a model")
    parser.add_argument("--out", type=new_file, help="JSON")
    options = parser.parse_args()
    started_on = machine()
    results = measure(options)
    unbatched = [
        len(lengths) * max(lengths) / sum(lengths)
        for lengths in (row_lengths(options, seed) for seed in range(options.seeds))
    ]
    raw = {name: [vars(one) for one in counts] for name, counts in results.items()}
    title = f"micro-batches of {options.rows} rows, median and worst of {options.seeds} seeds"
    report(title, table(results, unbatched), raw=raw, started_on=started_on, out=options.out)


if __name__ == "__main__":
    main()
