"""Qwen2 and Qwen2.5: biases on queries, keys and values, always (the config has no field)."""

from __future__ import annotations

from dataclasses import replace

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.family import Family, HFConfig
from herl_megatron.models.plain_decoder import decoder, window_of_all_layers


def _read(config: HFConfig) -> Architecture:
    return replace(decoder(config), qkv_bias=True, window=window_of_all_layers(config))


FAMILY = Family("qwen2", "Qwen2ForCausalLM", _read)
