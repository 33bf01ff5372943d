"""Rules of sections `eval` and `improve`."""

from __future__ import annotations

from collections.abc import Iterator

from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    if purpose != "improve":
        return
    improve = config.improve
    if config.eval.max_response_tokens is not None:
        yield (
            f"eval.max_response_tokens is {config.eval.max_response_tokens}, but under `herl"
            " improve` first samples and revisions have one limit: leave it null and set"
            " rollout.max_response_tokens"
        )
    if improve.temperature == 0 and improve.rounds > 1:
        yield (
            f"improve.temperature is 0 with improve.rounds {improve.rounds}: a draft whose revision"
            " was no better would be revised into the same text again; raise the temperature, or"
            " use rounds 1"
        )
    if config.eval.temperature == 0 and (improve.best_of_n or config.eval.samples_per_prompt > 1):
        yield (
            "eval.temperature is 0, so all plain samples of a prompt are equal: raise it, or set"
            " improve.best_of_n to false and eval.samples_per_prompt to 1"
        )
