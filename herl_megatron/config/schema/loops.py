"""Sections `train`, `sft` and `dpo`: how long each command runs, in which batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from herl_megatron.config.schema.base import (
    BY_CONTENT,
    MOST_ROWS,
    MOST_STEPS,
    MOST_TOKENS,
    Nothing,
    Numbers,
    Section,
)

MOST_EPOCHS = 1_000_000
"""Nobody goes through a file more often."""


class LoopSection(Section):
    """How long a command runs: in steps, or in epochs, of which `prepare` makes steps once
    (`data.epochs`)."""

    if TYPE_CHECKING:  # each section has them in a place and with bounds of its own
        steps: int | None
        epochs: float | None

    @model_validator(mode="before")
    @classmethod
    def _epochs_leave_no_default_of_steps(cls, given: Any) -> Any:
        """`steps` that nobody gave are not known yet, where epochs are given: never the default."""
        if isinstance(given, dict) and given.get("epochs") is not None and "steps" not in given:
            return given | {"steps": None}
        return given

    @property
    def step_count(self) -> int:
        """Steps of a configuration that `prepare` gave."""
        assert self.steps is not None, "epochs become steps before a command begins (data.epochs)"
        return self.steps

    def in_steps(self, steps: int) -> Self:
        """The same with that many steps in the place of its epochs."""
        return self.model_copy(update={"steps": steps, "epochs": None})


class TrainConfig(LoopSection):
    """The loop and its batches, in prompts and steps."""

    steps: Numbers[int | None] = Field(default=100, ge=0, le=MOST_STEPS)
    """Steps of the loop; one step is one weight version. 0 only evaluates and exports. Null, or
    left out, where `epochs` says how long."""
    epochs: Numbers[float | None] = Field(default=None, gt=0, le=MOST_EPOCHS)
    """Instead of `steps`: how often the rows of `data.train` are gone through. `herl train` counts
    them when it begins, and steps are epochs * rows / `prompts_per_step`, rounded up: the last one
    is whole and takes prompts of the next epoch. That number is what the run's config.yaml says,
    with no epochs, and what a resume compares."""
    prompts_per_step: Numbers[int] = Field(default=64, gt=0, le=MOST_ROWS)
    """Prompts sampled per step."""
    prompts_per_optimizer_step: Numbers[int] = Field(default=32, gt=0, le=MOST_ROWS)
    """Groups per optimizer step; divides `prompts_per_step`."""
    eval_every: Nothing[int] = Field(default=0, ge=0)
    """Evaluate every so many steps; 0 evaluates before the first and after the last only."""
    log_rollouts: Nothing[bool] = True
    """Write rollouts with verdicts and revisions to `rollouts/step_*.jsonl`."""
    keep_groups: Nothing[bool] = False
    """Write each step's groups whole as well, with token ids, log-probs and verdicts, to
    `rollouts/step_*.groups.gz`: what `only: learning` trains on."""
    only: Numbers[Literal["", "rollouts", "learning"]] = ""
    """Half of the loop alone, to look for a fault in it: `rollouts` samples, scores and revises
    with the weights of `model.path` and starts no trainer; `learning` trains on `groups_from` and
    starts neither engine nor judge. Neither evaluates, saves checkpoints or can be resumed."""
    groups_from: Nothing[str] = ""
    """`only: learning`: the folder of a run with `keep_groups`, or one of its `groups.gz` files to
    begin with; its steps keep their numbers."""
    export: Nothing[bool] = True
    """Write the final policy as a Hugging Face folder."""

    @property
    def optimizer_steps_per_step(self) -> int:
        """Planned optimizer steps of one step; those with nothing to learn from are not taken."""
        return self.prompts_per_step // self.prompts_per_optimizer_step


class SFTConfig(LoopSection):
    """Supervised fine-tuning with the same trainer."""

    data: Annotated[Numbers[str], BY_CONTENT] = ""
    """JSONL rows with `messages`, the last one the assistant's answer to learn."""
    steps: Numbers[int | None] = Field(default=100, gt=0, le=MOST_STEPS)
    """Optimizer steps. Null, or left out, where `epochs` says how many."""
    epochs: Numbers[float | None] = Field(default=None, gt=0, le=MOST_EPOCHS)
    """Instead of `steps`: how often the rows of `data` are gone through. Steps are epochs * rows /
    `rows_per_step`, rounded up, and what the run's config.yaml says (`train.epochs`)."""
    rows_per_step: Numbers[int] = Field(default=32, gt=0, le=MOST_ROWS)
    """Rows per optimizer step over all DP ranks."""
    max_tokens: Numbers[int] = Field(default=4096, gt=1, le=MOST_TOKENS)
    """Longest row after the chat template, all messages together, in tokens; a longer one is
    refused with its line, never cut."""
    eval_every: Nothing[int] = Field(default=0, ge=0)
    """Sample and score `data.eval` before the first step, every so many steps and after the last
    (so as many as `steps`: before and after only). 0 never does, and starts no engine."""


class DPOConfig(LoopSection):
    """Direct preference optimisation with the same trainer (`herl dpo`); the reference is the model
    as it starts, and only its log-probs are kept."""

    data: Annotated[Numbers[str], BY_CONTENT] = ""
    """JSONL rows with `id`, `messages` (the prompt), `chosen` and `rejected` (answers)."""
    steps: Numbers[int | None] = Field(default=100, gt=0, le=MOST_STEPS)
    """Optimizer steps. Null, or left out, where `epochs` says how many."""
    epochs: Numbers[float | None] = Field(default=None, gt=0, le=MOST_EPOCHS)
    """Instead of `steps`: how often the pairs of `data` are gone through. Steps are epochs * pairs
    / `pairs_per_step`, rounded up, and what the run's config.yaml says (`train.epochs`)."""
    pairs_per_step: Numbers[int] = Field(default=32, gt=0, le=MOST_ROWS)
    """Pairs per optimizer step over all DP ranks, two rows each."""
    max_tokens: Numbers[int] = Field(default=4096, gt=1, le=MOST_TOKENS)
    """Longest row after the chat template, prompt and one of its answers together, in tokens; a
    longer one is refused with its line, never cut."""
    loss: Numbers[Literal["sigmoid", "ipo"]] = "sigmoid"
    """DPO's logistic loss, or IPO's squared distance; `algos.losses_dpo` has both equations."""
    beta: Numbers[float] = Field(default=0.1, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    label_smoothing: Numbers[float] = Field(default=0.0, ge=0, lt=0.5)
    """Chance that a preference is the wrong way round (cDPO); `sigmoid` only."""
    eval_every: Nothing[int] = Field(default=0, ge=0)
    """As `sft.eval_every`."""
