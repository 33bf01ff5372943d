"""Sections `eval` and `improve`: what is done with held-out rows."""

from __future__ import annotations

from pydantic import Field

from herl_megatron.config.schema.base import (
    MOST_AT_ONCE,
    MOST_TOKENS,
    Evaluation,
    Nothing,
    Numbers,
    Section,
)


class EvalConfig(Section):
    """Held-out evaluation: the same rollout and scoring path, no training."""

    samples_per_prompt: Evaluation[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """Responses per held-out prompt."""
    temperature: Evaluation[float] = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: Evaluation[float] = Field(default=1.0, gt=0, le=1)
    """Nucleus truncation."""
    max_response_tokens: Evaluation[int | None] = Field(default=None, gt=0, le=MOST_TOKENS)
    """Longest response to a held-out prompt in tokens, for benchmarks that allow longer ones than
    training does; null: `rollout.max_response_tokens`."""
    seed: Evaluation[int] = 1234
    """Sampling seed, the same before and after training."""


class ImproveConfig(Section):
    """Self-improvement at test time (`herl improve`): revise the best answer so far against the
    criteria that it misses, and keep the better one. First samples are those of `eval`, whose
    `samples_per_prompt` counts the trajectories of a prompt; revisions are asked for with
    `hindsight.prompt_style` and `chat_template`."""

    rounds: Numbers[int] = Field(default=3, gt=0, le=1000)
    """Revisions of a trajectory, one after the other; one whose answer misses nothing stops."""
    temperature: Numbers[float] = Field(default=0.3, ge=0)
    """Sampling temperature of revisions."""
    best_of_n: Nothing[bool] = True
    """Also draw as many plain samples, and then as many tokens of them, to compare with."""
