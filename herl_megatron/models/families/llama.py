"""Llama: what the others are told apart from."""

from __future__ import annotations

from dataclasses import replace

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.family import Family, HFConfig
from herl_megatron.models.plain_decoder import decoder, window_of_all_layers


def _read(config: HFConfig) -> Architecture:
    return replace(decoder(config), window=window_of_all_layers(config))


FAMILY = Family("llama", "LlamaForCausalLM", _read)
