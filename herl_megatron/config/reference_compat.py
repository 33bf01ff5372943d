"""`reference_compat` as explicit values: what the released HeRL code does, spelled out."""

from __future__ import annotations

from herl_megatron.config.purpose import SECTIONS, Purpose
from herl_megatron.config.schema import Config, HindsightConfig, RolloutConfig
from herl_megatron.types import SamplingSettings

REFERENCE_VALUES: dict[str, str | bool] = {
    "behavior": "old",
    "train_context": "experience",
    "chat_template": False,
    "replace": "random",
    "no_qualified": "copy_best",
    "join_cut": True,
    "off_policy_loss": "shaped",
}
"""The keys that `reference_compat` sets; revisions are drawn as `rollout` says."""


def effective(hindsight: HindsightConfig, rollout: RolloutConfig) -> HindsightConfig:
    """The configuration with `reference_compat` resolved into the values that it stands for.

    `temperature` and `top_p` are among them, which the released code takes from the first samples.
    Without `reference_compat` the configuration is returned as it is; resolving twice changes
    nothing.

    Raises ValueError, with both values, if one of those keys was set to something else.
    """
    if not hindsight.reference_compat:
        return hindsight
    values: dict[str, str | bool | float] = dict(REFERENCE_VALUES)
    values |= {"temperature": rollout.temperature, "top_p": rollout.top_p}
    given = hindsight.model_dump()
    conflicts = [
        f"hindsight.{key} is {given[key]!r}, but hindsight.reference_compat needs {value!r}"
        for key, value in values.items()
        if key in hindsight.model_fields_set and given[key] != value
    ]
    if conflicts:
        raise ValueError(
            "; ".join(conflicts) + ": remove or change these keys, or turn reference_compat off"
        )
    return hindsight.model_copy(update=values)


def effective_config(config: Config, *, purpose: Purpose) -> Config:
    """What `herl PURPOSE` runs: with the section `hindsight` resolved if the command reads it.

    Raises ValueError as `effective` does.
    """
    if "hindsight" not in SECTIONS[purpose]:
        return config
    return config.model_copy(update={"hindsight": effective(config.hindsight, config.rollout)})


def is_resolved(hindsight: HindsightConfig) -> bool:
    """Whether the section itself says what `reference_compat` stands for (`effective`)."""
    values = hindsight.model_dump(include=set(REFERENCE_VALUES))
    return not hindsight.reference_compat or values == REFERENCE_VALUES


def revision_sampling(hindsight: HindsightConfig, rollout: RolloutConfig) -> SamplingSettings:
    """How revisions are drawn; under `reference_compat` (resolved) exactly like first samples."""
    return SamplingSettings(
        temperature=hindsight.temperature,
        top_p=hindsight.top_p,
        top_k=rollout.top_k if hindsight.reference_compat else -1,
        max_tokens=rollout.max_response_tokens,
    )
