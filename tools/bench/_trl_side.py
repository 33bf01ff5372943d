"""The TRL side of `bench_trl.py`, in TRL's own environment; prints one JSON line at its end.

The reward is this project's: the rubric of each prompt through the same rule checks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

_STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    """Train as `bench_trl.py` says and print seconds, tokens and rewards by step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", help="JSON object, see bench_trl.py")
    settings = json.loads(parser.parse_args().settings)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(settings["threads"])
    rewards = RubricReward(settings["prompts"])
    prompts = rewards.prompts[: settings["steps"] * settings["prompts_per_step"]]
    rows = [
        {"prompt": [vars(message) for message in prompt.messages], "prompt_id": prompt.id}
        for prompt in prompts
    ]
    clock = make_clock(transformers.TrainerCallback)
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            settings["model"],
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]],
        ),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        reward_funcs=[rewards.score],
        args=make_arguments(trl.GRPOConfig, settings),
        train_dataset=Dataset.from_list(rows),
        callbacks=[clock],
    )
    start_s = time.perf_counter() - _STARTED
    begun = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - begun
    tokens, means = rewards.tokens, rewards.means
    if settings["processes"] > 1:  # each process has scored its part of every batch
        parts: list[Any] = [None] * settings["processes"]
        torch.distributed.all_gather_object(parts, (tokens, means))
        tokens = [sum(step) for step in zip(*(part[0] for part in parts), strict=True)]
        means = [mean(step) for step in zip(*(part[1] for part in parts), strict=True)]
    if int(os.environ.get("RANK", "0")):
        return
    print(
        json.dumps(
            {
                "version": trl.__version__,
                "start_s": start_s,
                "train_s": train_s,
                "step_s": clock.step_s,
                "tokens": tokens,
                "rewards": means,
            }
        )
    )


class RubricReward:
    """The rubrics' rewards of TRL's completions, and what was generated in each step."""

    def __init__(self, path: str) -> None:
        from herl_megatron.data.prompt_source import load_prompts

        self.prompts = load_prompts(path)
        self._rubrics = {prompt.id: prompt.rubric for prompt in self.prompts}
        self.tokens: list[int] = []
        self.means: list[float] = []

    def score(
        self,
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        prompt_id: list[str],
        **_: Any,
    ) -> list[float | None]:
        """TRL's reward function: None, which TRL leaves out, for a response without a score."""
        from herl_megatron.rubrics.worker import score_texts
        from herl_megatron.types import Scored

        rewards: list[float | None] = []
        for completion, name in zip(completions, prompt_id, strict=True):
            text = completion[-1]["content"]
            (score,) = score_texts(self._rubrics[name], [text], check_timeout_s=5.0)
            rewards.append(score.reward if isinstance(score, Scored) else None)
        self.tokens.append(sum(map(len, completion_ids)))
        scored = [reward for reward in rewards if reward is not None]
        self.means.append(sum(scored) / len(scored))
        return rewards


def make_arguments(config: Any, settings: dict[str, Any]) -> Any:
    """One optimizer step per generation of the whole batch, no KL, nothing written."""
    rows = settings["prompts_per_step"] * settings["group_size"] // settings["processes"]
    return config(
        output_dir=settings["scratch"],
        use_cpu=True,
        ddp_backend="gloo" if settings["processes"] > 1 else None,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows // settings["micro_batches"],
        gradient_accumulation_steps=settings["micro_batches"],
        num_generations=settings["group_size"],
        max_completion_length=settings["max_response_tokens"],
        max_steps=settings["steps"],
        temperature=1.0,
        top_k=0,
        beta=0.0,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group",
        use_transformers_continuous_batching=settings["continuous_batching"],
        shuffle_dataset=False,
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def make_clock(base: type) -> Any:
    """A callback that keeps the seconds of every step."""

    class Clock(base):  # type: ignore[misc]  # a base that is known at run time
        def __init__(self) -> None:
            self.step_s: list[float] = []
            self._begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.step_s.append(time.perf_counter() - self._begun)

    return Clock()


if __name__ == "__main__":
    main()
