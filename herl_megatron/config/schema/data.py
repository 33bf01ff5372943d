"""Sections `model` and `data`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field, field_validator

from herl_megatron.config.schema.base import (
    BY_CONTENT,
    MOST_TOKENS,
    Evaluation,
    Nothing,
    Numbers,
    Section,
)


class ModelConfig(Section):
    """The policy."""

    path: Annotated[Numbers[str], BY_CONTENT] = ""
    """Hugging Face folder: `config.json`, tokenizer with a chat template, safetensors weights; or
    a model's name on the Hugging Face Hub, `owner/name` or `owner/name@revision`, which becomes its
    folder in the local cache and is fetched where it is not there. Every command but `herl score`
    needs it."""
    hub: Nothing[str] = ""
    """Which model of the Hub lies in `path`, `owner/name@commit`: written by herl where `path` was
    such a name. Where the folder is gone, the same commit is looked for again."""
    random_init: Numbers[bool] = False
    """Start from random weights drawn with `run.seed` instead of reading them (shape only)."""
    megatron_path: Annotated[Numbers[str], BY_CONTENT] = ""
    """Start training from these weights instead: what `herl convert to-megatron` wrote, or `step_N`
    of another run's checkpoints (weights only), of any layout. `path` still gives configuration
    and tokenizer."""
    fp32_output_layer: Numbers[bool] = False
    """Compute logits in float32 in trainer and engine, whatever the precision of the rest: rounded
    to bf16, logits are the largest single source of what separates their log-probs."""


class DataConfig(Section):
    """Prompts and their limits."""

    train: Annotated[Numbers[str], BY_CONTENT] = ""
    """Canonical rows (JSONL or Parquet) to train on."""
    eval: Annotated[Evaluation[str | tuple[str, ...]], BY_CONTENT] = ""
    """Canonical rows held out for evaluation, or a list of such files, whose rows are evaluated
    together and must have different ids; empty means no evaluation."""
    max_prompt_tokens: Numbers[int] = Field(default=1024, gt=0, le=MOST_TOKENS)
    """Longest prompt after the chat template, in tokens; a longer row is refused by id."""
    max_experience_tokens: Numbers[int] = Field(default=2048, gt=0, le=MOST_TOKENS)
    """Longest revision prompt in tokens; a longer one is skipped and counted, never cut."""
    shuffle: Numbers[bool] = True
    """Draw prompts in a seeded order, a new one each epoch."""
    chat_template_args: Numbers[dict[str, Any]] = {}
    """Arguments of the model's chat template, as {enable_thinking: false} for Qwen3: of prompts,
    revision prompts and supervised rows alike. Whoever serves the policy must give the same."""
    template_date: Numbers[str] = ""
    """The day, YYYY-MM-DD, that a chat template with today's date in it (Llama 3) shows. Empty: the
    day on which the run starts, which is written here; a resumed run keeps it."""
    think_tags: Numbers[tuple[str, ...]] = ()
    """Special tokens that messages may spell and that responses are read with, as ("<think>",
    "</think>"); those of `scoring.answer_after` need not be named. All others stay text where a
    message spells them, and are left out of a response's text."""

    @property
    def eval_files(self) -> tuple[str, ...]:
        """The files of `eval`, in order; none without an evaluation."""
        if isinstance(self.eval, str):
            return (self.eval,) if self.eval else ()
        return self.eval

    @field_validator("template_date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        if value:
            try:
                datetime.date.fromisoformat(value)
            except ValueError as error:
                raise ValueError("a day is written YYYY-MM-DD") from error
        return value
