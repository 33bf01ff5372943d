"""Engine log-probs against trainer log-probs of the same tokens, in fp32 and bf16.

    python tools/bench/check_log_probs.py --model runs/quickstart/sft/policy --prompts DATA.jsonl

Samples from the engines after a weight sync, asks the Megatron trainer for the log-probs of the
same tokens, and prints the mean and largest absolute difference. Both the log-probs reported with
the samples and those of a second pass over the finished sequences are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json

import numpy as np
from rich.console import Console
from rich.table import Table

from herl_megatron.config.schema import (
    Config,
    DataConfig,
    EvalConfig,
    HindsightConfig,
    MegatronConfig,
    ModelConfig,
    ParityConfig,
    Precision,
    RolloutConfig,
    TrainConfig,
)
from herl_megatron.run.inputs import load_inputs
from herl_megatron.run.parts import TrainParts, open_train_parts
from herl_megatron.types import Completion, TokenRow

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def config_for(arguments: argparse.Namespace, precision: Precision) -> Config:
    """One engine and one trainer in the same precision."""
    return Config(
        model=ModelConfig(path=arguments.model),
        data=DataConfig(
            train=arguments.prompts,
            max_prompt_tokens=arguments.prompt_tokens,
            max_experience_tokens=arguments.prompt_tokens,
        ),
        rollout=RolloutConfig(
            dtype=precision,
            max_response_tokens=arguments.response_tokens,
            kv_cache_bytes=arguments.kv_cache_bytes,
        ),
        hindsight=HindsightConfig(enabled=False),
        train=TrainConfig(steps=1, prompts_per_step=1, prompts_per_optimizer_step=1),
        eval=EvalConfig(samples_per_prompt=4),
        megatron=MegatronConfig(precision=precision, tensor_parallel=arguments.tensor_parallel),
        parity=ParityConfig(every=0),  # who asks for the numbers wants those beyond the limits too
    )


async def compare(config: Config, prompts: int) -> dict[str, float]:
    """Mean and max |difference| over all sampled tokens."""
    inputs = load_inputs(config, training=True)
    async with open_train_parts(config, inputs) as parts:
        await parts.sync_weights(0)
        groups = await parts.eval_pipeline.run(inputs.train[:prompts], step=0)
        pairs = [
            (group.group.prompt_token_ids, rollout.completion)
            for group in groups
            for rollout in group.group.rollouts
        ]
        trainer, second = await both(parts, pairs)
    sampled = [completion.log_probs for _, completion in pairs]
    reported = np.abs(np.concatenate(sampled) - np.concatenate(trainer))
    rescored = np.abs(np.concatenate(second) - np.concatenate(trainer))
    return {
        "tokens": float(len(reported)),
        "sampled_mean": float(reported.mean()),
        "sampled_max": float(reported.max()),
        "rescored_mean": float(rescored.mean()),
        "rescored_max": float(rescored.max()),
    }


async def both(
    parts: TrainParts, pairs: list[tuple[np.ndarray, Completion]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-probs of the same responses from the trainer and from the engine's second pass."""
    rows = [TokenRow("", prompt, completion.token_ids) for prompt, completion in pairs]
    trainer = await parts.trainer.log_probs(rows)
    sequences = [np.concatenate([prompt, completion.token_ids]) for prompt, completion in pairs]
    second = await parts.engines[0].score_tokens(sequences, [len(prompt) for prompt, _ in pairs])
    return trainer, second


def main() -> None:
    """Parse arguments, run both precisions and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--prompts", required=True, help="canonical rows")
    parser.add_argument("--count", type=int, default=64, help="prompts, four samples each")
    parser.add_argument("--tensor-parallel", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--kv-cache-bytes", type=int, default=64 << 20)
    arguments = parser.parse_args()
    results = {
        precision: asyncio.run(compare(config_for(arguments, precision), arguments.count))
        for precision in _PRECISIONS
    }
    table = Table("precision", "tokens", "sampled: mean", "max", "second pass: mean", "max")
    for precision, result in results.items():
        numbers = [f"{value:.2e}" for name, value in result.items() if name != "tokens"]
        table.add_row(precision, f"{result['tokens']:.0f}", *numbers)
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
