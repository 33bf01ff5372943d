"""Frequencies of rotary embeddings, against `transformers` and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from herl_megatron.models.rope import Rope, inverse_frequencies, read_partial_rope, read_rope

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
HEAD_DIM = 128


def test_default_frequencies_by_hand() -> None:
    assert inverse_frequencies(Rope(theta=10000.0), 8).tolist() == pytest.approx(
        [1.0, 0.1, 0.01, 0.001]
    )
    half = inverse_frequencies(Rope(theta=100.0, fraction=0.5), 8)
    assert half.tolist() == pytest.approx([1.0, 0.1])


def test_yarn_by_hand() -> None:
    # d = 8 and theta = 10^4: pair i turns L 10^-i / (2 pi) times. With L = 200 pi pair 0 turns 100
    # times, pair 1 10 times, 2 once: a = 0 for beta_fast 100, b = 2 for beta_slow 1.
    rope = read_rope(
        {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 200 * math.pi,
            "beta_fast": 100.0,
            "beta_slow": 1.0,
            "truncate": False,
        }
    )
    # Pair 1 is half way: 0.1 (1 + 1/4) / 2.
    assert inverse_frequencies(rope, 8).tolist() == pytest.approx(
        [1.0, 0.0625, 0.0025, 0.00025], rel=1e-6
    )
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
        LLAMA3,
        LLAMA3 | {"factor": 32.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 99},
        YARN,
        YARN | {"truncate": False, "beta_fast": 20.0, "beta_slow": 2.5},
        YARN | {"attention_factor": 1.25},
        YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "factor": 40.0},
        YARN | {"mscale": 0.7},
        YARN | {"beta_fast": 1e-3, "beta_slow": 1e-3},
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers(parameters: dict[str, Any]) -> None:
    config = Qwen3Config(
        head_dim=HEAD_DIM, max_position_embeddings=131072, rope_parameters=dict(parameters)
    )
    wanted, attention_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    rope = read_rope(parameters)
    torch.testing.assert_close(inverse_frequencies(rope, HEAD_DIM), wanted, rtol=5e-7, atol=0)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "longrope"}, "rope_type 'longrope' is not supported; one of default, "),
        ({"rope_theta": 1.0}, "rope_theta is 1.0; rope_type yarn needs one above 1"),
        ({"factor": None}, "rope factor is None; it must be a number above 0"),
        ({"original_max_position_embeddings": "32k"}, "original_max_position_embeddings is '32k'"),
        ({"beta_fast": 0}, "rope beta_fast is 0; it must be a number above 0"),
        ({"truncate": 1}, "rope truncate is 1; it must be true or false"),
        ({"mscale": -1, "mscale_all_dim": 1}, "rope mscale is -1; it must be"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; this family rotates whole"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor is 1.0 and low_freq_factor 1.0; "),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rope(YARN | changes)


@pytest.mark.parametrize("factor", [0, -0.5, 1.5, 0.3, "half", True])
def test_rotated_part_of_a_head_is_whole_pairs(factor: object) -> None:
    with pytest.raises(ValueError, match="partial_rotary_factor is .* with head_dim 4; it must"):
        read_partial_rope(YARN | {"partial_rotary_factor": factor}, head_dim=4)
