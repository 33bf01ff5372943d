"""The HF <-> Megatron mapping on numbers small enough to write down."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from herl_megatron.megatron.convert.layout import blocks
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.known_families import architecture_from_config
from herl_megatron.models.parameters import (
    Layout,
    Parameter,
    canonical_name,
    padded_vocab_size,
    parameters,
    shard,
    unfuse,
)

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "num_hidden_layers": 2,
    "hidden_size": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 1,
    "intermediate_size": 4,
    "vocab_size": 5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "use_sliding_window": False,
    "sliding_window": None,
}


def architecture(**changes: Any) -> Architecture:
    """The tiny Qwen3 with some fields changed."""
    return architecture_from_config({**CONFIG, **changes})


def by_name(a: Architecture) -> dict[str, Parameter]:
    """Parameters by Megatron name."""
    return {parameter.name: parameter for parameter in parameters(a)}


def test_query_key_value_interleave_by_group() -> None:
    a = architecture(model_type="qwen2")
    parameter = by_name(a)["decoder.layers.1.self_attention.linear_qkv.bias"]
    assert parameter.hf_names == tuple(f"model.layers.1.self_attn.{x}_proj.bias" for x in "qkv")
    q, k, v = torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11]), torch.tensor([20, 21])
    # Group 0: its two query heads, key, value; then group 1.
    assert shard(parameter, [q, k, v], a, rank=0, size=1).tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    halves = [shard(parameter, [q, k, v], a, rank=rank, size=2) for rank in range(2)]
    assert halves[1].tolist() == [2, 3, 11, 21]
    back = unfuse(parameter, torch.stack(halves), a)
    assert [t.tolist() for t in back] == [[0, 1, 2, 3], [10, 11], [20, 21]]


def test_each_rank_holds_its_gate_above_its_up() -> None:
    a = architecture()
    parameter = by_name(a)["decoder.layers.0.mlp.linear_fc1.weight"]
    gate = torch.arange(4)[:, None].expand(4, 3)
    up = gate + 100
    halves = [shard(parameter, [gate, up], a, rank=rank, size=2) for rank in range(2)]
    assert halves[0][:, 0].tolist() == [0, 1, 100, 101]
    assert halves[1][:, 0].tolist() == [2, 3, 102, 103]
    got_gate, got_up = unfuse(parameter, torch.stack(halves), a)
    assert torch.equal(got_gate, gate) and torch.equal(got_up, up)


GLM4: dict[str, Any] = {
    "model_type": "glm4",
    "head_dim": 4,
    "attention_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}


def test_gate_above_up_in_one_tensor_is_cut_like_two() -> None:
    a = architecture(**GLM4)
    parameter = by_name(a)["decoder.layers.0.mlp.linear_fc1.weight"]
    assert parameter.hf_names == ("model.layers.0.mlp.gate_up_proj.weight",)
    both = torch.tensor([0, 1, 2, 3, 100, 101, 102, 103])[:, None].expand(8, 3)
    halves = [shard(parameter, [both], a, rank=rank, size=2) for rank in range(2)]
    assert halves[0][:, 0].tolist() == [0, 1, 100, 101]
    assert halves[1][:, 0].tolist() == [2, 3, 102, 103]
    (back,) = unfuse(parameter, torch.stack(halves), a)
    assert torch.equal(back, both)
    # In a checkpoint: rows 2 and 3 of the gate, and rows 6 and 7 of the same tensor, up's.
    found = [(b.offsets, b.tensor, b.rows) for b in blocks(parameter, a, rank=1, tp=2)]
    assert found == [((2, 0), 0, (2, 4)), ((6, 0), 0, (6, 8))]


def test_row_parallel_weights_are_cut_by_columns() -> None:
    a = architecture()
    parameter = by_name(a)["decoder.layers.0.mlp.linear_fc2.weight"]
    weight = torch.arange(12).view(3, 4)
    halves = [shard(parameter, [weight], a, rank=rank, size=2) for rank in range(2)]
    assert halves[1].tolist() == [[2, 3], [6, 7], [10, 11]]
    assert torch.equal(unfuse(parameter, torch.stack(halves), a)[0], weight)


def test_vocabulary_is_padded_with_zeros_and_the_padding_dropped() -> None:
    assert [padded_vocab_size(n, tp) for n, tp in ((515, 1), (515, 2), (512, 4), (1, 4))] == [
        640,
        768,
        512,
        512,
    ]
    a = architecture(vocab_size=130)
    parameter = by_name(a)["embedding.word_embeddings.weight"]
    weight = torch.arange(1, 391).view(130, 3)
    halves = [shard(parameter, [weight], a, rank=rank, size=2) for rank in range(2)]
    assert halves[0].shape == halves[1].shape == (128, 3)
    assert halves[1][:2].tolist() == [[385, 386, 387], [388, 389, 390]]
    assert not halves[1][2:].any()
    assert torch.equal(unfuse(parameter, torch.stack(halves), a)[0], weight)


def test_names_of_a_tied_model_with_query_key_norms() -> None:
    a = architecture(num_hidden_layers=1)
    assert [(p.name, p.hf_names, p.layout) for p in parameters(a) if not p.tied_copy] == [
        ("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Layout.VOCAB),
        (
            "decoder.layers.0.input_layernorm.weight",
            ("model.layers.0.input_layernorm.weight",),
            Layout.PLAIN,
        ),
        (
            "decoder.layers.0.self_attention.linear_qkv.weight",
            tuple(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"),
            Layout.QKV,
        ),
        (
            "decoder.layers.0.self_attention.q_layernorm.weight",
            ("model.layers.0.self_attn.q_norm.weight",),
            Layout.PLAIN,
        ),
        (
            "decoder.layers.0.self_attention.k_layernorm.weight",
            ("model.layers.0.self_attn.k_norm.weight",),
            Layout.PLAIN,
        ),
        (
            "decoder.layers.0.self_attention.linear_proj.weight",
            ("model.layers.0.self_attn.o_proj.weight",),
            Layout.ROW,
        ),
        (
            "decoder.layers.0.pre_mlp_layernorm.weight",
            ("model.layers.0.post_attention_layernorm.weight",),
            Layout.PLAIN,
        ),
        (
            "decoder.layers.0.mlp.linear_fc1.weight",
            ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            Layout.GATE_UP,
        ),
        (
            "decoder.layers.0.mlp.linear_fc2.weight",
            ("model.layers.0.mlp.down_proj.weight",),
            Layout.ROW,
        ),
        ("decoder.final_layernorm.weight", ("model.norm.weight",), Layout.PLAIN),
    ]
    assert by_name(a)["output_layer.weight"].hf_names == ("model.embed_tokens.weight",)
    untied = by_name(architecture(tie_word_embeddings=False))["output_layer.weight"]
    assert untied.hf_names == ("lm_head.weight",) and not untied.tied_copy


def test_transformer_engine_names_mean_the_same_parameters() -> None:
    layer = "decoder.layers.3."
    for te_name, name in {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
        "mlp.experts.linear_fc1.weight12": "mlp.experts.12.linear_fc1.weight",
        "mlp.experts.local_experts.4.linear_fc2.weight": "mlp.experts.4.linear_fc2.weight",
        "mlp.linear_fc1.weight": "mlp.linear_fc1.weight",
    }.items():
        assert canonical_name(layer + te_name) == layer + name


def test_window_only_where_all_layers_have_it() -> None:
    window = {"use_sliding_window": True, "sliding_window": 7}
    assert architecture(**window).window == 7
    assert architecture(sliding_window=7).window is None, "use_sliding_window is false"
    with pytest.raises(ValueError, match="layer_types mixes"):
        architecture(**window, layer_types=["full_attention", "sliding_attention"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0, "factor": 4.0}},
            "rope_type 'longrope' is not supported",
        ),
    ],
)
def test_what_megatron_cannot_express_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(**changes)
