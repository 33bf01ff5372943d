"""How long a command's loop is and what it does besides its steps, whichever command it is."""

from __future__ import annotations

from dataclasses import dataclass

from herl_megatron.config.purpose import SAMPLES, TUNES, Purpose
from herl_megatron.config.schema import Config


@dataclass(frozen=True)
class LoopKeys:
    """Of the loop of `train`, `sft` or `dpo`.

    steps: of the whole run; optimizer_steps: planned ones in them, the length of the learning
        rate's schedule.
    eval_every: held-out numbers after every so many steps, 0 for none in between.
    evaluates: whether there are any; then before the first step and after the last too.
    """

    purpose: Purpose
    steps: int
    optimizer_steps: int
    eval_every: int
    evaluates: bool
    export: bool

    def evaluates_after(self, steps_done: int) -> bool:
        """Whether held-out numbers are due between this step and the next."""
        between = 0 < steps_done < self.steps
        return between and bool(self.eval_every) and not steps_done % self.eval_every


def loop_keys(config: Config, *, purpose: Purpose) -> LoopKeys:
    """Those of `herl PURPOSE`, which is one that trains."""
    evaluates = bool(config.data.eval) and samples(config, purpose=purpose)
    if purpose in TUNES:
        tune = config.sft if purpose == "sft" else config.dpo
        return LoopKeys(
            purpose, tune.step_count, tune.step_count, tune.eval_every, evaluates, export=True
        )
    train = config.train
    return LoopKeys(
        purpose,
        train.step_count,
        train.step_count * train.optimizer_steps_per_step,
        train.eval_every,
        evaluates,
        export=train.export,
    )


def samples(config: Config, *, purpose: Purpose) -> bool:
    """Whether `herl PURPOSE` starts engines and scores: SFT and DPO where `eval_every` asks."""
    if purpose in TUNES:
        return bool(config.sft.eval_every if purpose == "sft" else config.dpo.eval_every)
    return purpose in SAMPLES
