"""Buckets of the weight stream, worked out by hand for a tiny model."""

from __future__ import annotations

import torch

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.rope import Rope
from herl_megatron.weight_sync.buckets import plan_buckets

# Bytes in bf16: embedding 2*10*4 = 80; per layer: norm 8, qkv (4+2+2)*4*2 = 64, o_proj 32, norm 8,
# gate+up 2*6*4*2 = 96, down 48; final norm 8; lm_head 80.
ARCHITECTURE = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    ffn_size=6,
    vocab_size=10,
    max_positions=64,
    norm_eps=1e-6,
    initializer_range=0.02,
    tied=False,
    qkv_bias=False,
    qk_norm=False,
    rope=Rope(theta=1e4),
)


def _sizes(config: MegatronConfig, bucket_bytes: int) -> list[tuple[int, int]]:
    plan = plan_buckets(ARCHITECTURE, config, bucket_bytes=bucket_bytes, dtype=torch.bfloat16)
    assert [bucket.index for bucket in plan] == list(range(len(plan)))
    return [(bucket.pp_stage, bucket.num_bytes) for bucket in plan]


def test_buckets_fill_up_and_end_with_the_stage() -> None:
    assert _sizes(MegatronConfig(), 1000) == [(0, 80 + 2 * 256 + 8 + 80)]
    two_stages = MegatronConfig(pipeline_parallel=2)
    assert _sizes(two_stages, 1000) == [(0, 80 + 256), (1, 256 + 8 + 80)]
    assert _sizes(two_stages, 200) == [
        (0, 80 + 8 + 64 + 32 + 8),  # gate and up (96) do not fit any more
        (0, 96 + 48),
        (1, 8 + 64 + 32 + 8),
        (1, 96 + 48 + 8),
        (1, 80),
    ]


def test_a_parameter_larger_than_a_bucket_travels_alone() -> None:
    config = MegatronConfig()
    plan = plan_buckets(ARCHITECTURE, config, bucket_bytes=70, dtype=torch.bfloat16)
    oversized = [bucket for bucket in plan if bucket.num_bytes > 70]
    assert [[tensor.name for tensor in bucket.tensors] for bucket in oversized] == [
        ["model.embed_tokens.weight"],
        ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"],
        ["model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"],
        ["lm_head.weight"],
    ]


def test_interleaved_chunks_send_the_layers_of_their_own_stage() -> None:
    four = Architecture(**{**vars(ARCHITECTURE), "num_layers": 4})
    config = MegatronConfig(pipeline_parallel=2, virtual_pipeline=2)
    plan = plan_buckets(four, config, bucket_bytes=10**6, dtype=torch.float32)
    layers = [{p.layer for p in bucket.parameters if p.layer is not None} for bucket in plan]
    assert layers == [{0, 2}, {1, 3}]
    assert plan[0].tensors[0].dtype == "float32" and plan[0].tensors[0].num_bytes == 160
