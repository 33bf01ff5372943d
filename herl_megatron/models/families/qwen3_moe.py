"""Qwen3 with a mixture of experts in some or all layers."""

from __future__ import annotations

from dataclasses import replace

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.family import Family, HFConfig
from herl_megatron.models.plain_decoder import decoder, read_experts, window_of_all_layers


def _read(config: HFConfig) -> Architecture:
    return replace(
        decoder(config),
        qk_norm=True,
        window=window_of_all_layers(config),
        experts=read_experts(config),
    )


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", _read)
