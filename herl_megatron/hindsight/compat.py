"""`reference_compat` as explicit values: what the released HeRL code does, spelled out."""

from __future__ import annotations

from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.types import SamplingSettings

REFERENCE_VALUES: dict[str, str | bool] = {
    "behavior": "old",
    "train_context": "experience",
    "chat_template": False,
    "replace": "random",
    "no_qualified": "copy_best",
    "off_policy_loss": "shaped",
}
"""The keys that `reference_compat` sets; sampling follows `rollout` (see `effective`)."""


def effective(hindsight: HindsightConfig, rollout: RolloutConfig | None = None) -> HindsightConfig:
    """The configuration with `reference_compat` resolved into the values that it stands for.

    With `rollout` also `temperature` and `top_p`, which the released code takes from the first
    samples; what only joins rows does not need them. Without `reference_compat` the configuration
    is returned as it is; resolving twice changes nothing.

    Raises ValueError, with both values, if one of those keys was set to something else.
    """
    if not hindsight.reference_compat:
        return hindsight
    values: dict[str, str | bool | float] = dict(REFERENCE_VALUES)
    if rollout is not None:
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


def revision_sampling(hindsight: HindsightConfig, rollout: RolloutConfig) -> SamplingSettings:
    """How revisions are drawn; under `reference_compat` exactly like first samples."""
    resolved = effective(hindsight, rollout)
    return SamplingSettings(
        temperature=resolved.temperature,
        top_p=resolved.top_p,
        top_k=rollout.top_k if resolved.reference_compat else -1,
        max_tokens=rollout.max_response_tokens,
    )
