"""The model families that are known, and the one way from a Hugging Face config to a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from herl_megatron.config.shape import size_problems
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.families import gemma3_text, glm4, llama, mistral, qwen2, qwen3, qwen3_moe
from herl_megatron.models.family import Family, HFConfig

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        module.FAMILY.model_type: module.FAMILY
        for module in (gemma3_text, glm4, llama, mistral, qwen2, qwen3, qwen3_moe)
    }
)
"""By `model_type`."""


def architecture_from_config(config: HFConfig) -> Architecture:
    """Read a complete HF config.

    Raises:
        ValueError: an unknown `model_type`, or a field whose value Megatron-Core cannot express.
    """
    model_type = config["model_type"]
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; one of {sorted(FAMILIES)}")
    if problems := list(size_problems(config)):
        raise ValueError("; ".join(problems))
    family = FAMILIES[model_type]
    for key, allowed in family.allowed.items():
        if key in config and config[key] not in allowed:
            raise ValueError(f"{key} is {config[key]!r}; {model_type} supports only {allowed[0]!r}")
    return family.read(config)
