"""`reference_compat` as explicit values."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.config.reference_compat import effective, revision_sampling
from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.types import SamplingSettings

ROLLOUT = RolloutConfig(temperature=0.9, top_p=0.8, top_k=40, max_response_tokens=64)


def test_without_compat_nothing_changes() -> None:
    config = HindsightConfig(replace="append")
    assert effective(config, ROLLOUT) is config


def test_compat_stands_for_these_values() -> None:
    config = HindsightConfig(reference_compat=True, gamma=1.0)
    before = config.model_dump()
    resolved = effective(config, ROLLOUT)
    changed = {key: value for key, value in resolved.model_dump().items() if before[key] != value}
    assert changed == {
        "behavior": "old",
        "train_context": "experience",
        "chat_template": False,
        "replace": "random",
        "no_qualified": "copy_best",
        "join_cut": True,
        "temperature": 0.9,
        "top_p": 0.8,
    }
    assert config.model_dump() == before


def test_resolving_twice_changes_nothing() -> None:
    once = effective(HindsightConfig(reference_compat=True), ROLLOUT)
    assert effective(once, ROLLOUT) == once
    written = HindsightConfig(**once.model_dump())  # as a saved configuration is read again
    assert effective(written, ROLLOUT) == once


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("behavior", "sampler", "'old'"),
        ("train_context", "prompt", "'experience'"),
        ("chat_template", True, "False"),
        ("replace", "worst", "'random'"),
        ("no_qualified", "keep", "'copy_best'"),
        ("off_policy_loss", "clip", "'shaped'"),
        ("temperature", 0.3, "0.9"),
        ("top_p", 1.0, "0.8"),
    ],
)
def test_a_conflicting_key_is_refused_with_both_values(key: str, value: Any, needed: str) -> None:
    config = HindsightConfig(reference_compat=True, **{key: value})
    with pytest.raises(ValueError, match=f"hindsight.{key} is {value!r}.*needs {needed}"):
        effective(config, ROLLOUT)


def test_an_explicit_key_of_the_same_value_is_fine() -> None:
    config = HindsightConfig(reference_compat=True, replace="random", temperature=0.9)
    assert effective(config, ROLLOUT).replace == "random"


def test_revision_sampling_of_each() -> None:
    ours = revision_sampling(HindsightConfig(temperature=0.2, top_p=0.7), ROLLOUT)
    assert ours == SamplingSettings(temperature=0.2, top_p=0.7, top_k=-1, max_tokens=64)
    resolved = effective(HindsightConfig(reference_compat=True), ROLLOUT)
    released = revision_sampling(resolved, ROLLOUT)
    assert released == ROLLOUT.sampling()
    assert released == SamplingSettings(temperature=0.9, top_p=0.8, top_k=40, max_tokens=64)
