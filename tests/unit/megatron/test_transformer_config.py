"""What is set for Transformer Engine's layers, which are not there on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config,
)

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.megatron import transformer_config
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.known_families import architecture_from_config
from tests.distributed.tiny_models import config


@pytest.fixture
def fields(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Megatron's configuration refuses Transformer Engine's kernels where it is not installed."""
    monkeypatch.setattr(transformer_config, "TransformerConfig", lambda **given: given)
    monkeypatch.setattr(transformer_config, "lengthen_rotated_part", lambda *_: None)

    def of(architecture: Architecture, *, transformer_engine: bool, **layout: Any) -> Any:
        return transformer_config.transformer_config(
            architecture, MegatronConfig(**layout), transformer_engine=transformer_engine
        )

    return of


def test_windowed_attention_exchanges_sequences_for_heads_under_cp(fields: Any) -> None:
    mistral = architecture_from_config(config("mistral").to_dict())
    assert (mistral.window, mistral.num_kv_heads) == (5, 2)
    assert fields(mistral, transformer_engine=True, context_parallel=2)["cp_comm_type"] == "a2a"
    assert "cp_comm_type" not in fields(mistral, transformer_engine=True)
    whole = replace(mistral, window=None)
    assert "cp_comm_type" not in fields(whole, transformer_engine=True, context_parallel=2)
    assert "cp_comm_type" not in fields(mistral, transformer_engine=False, context_parallel=2)
    layout: dict[str, Any] = dict(tensor_parallel=2, context_parallel=2)
    with pytest.raises(ValueError, match=r"window of 5 .* num_key_value_heads 2, which"):
        fields(mistral, transformer_engine=True, **layout)
    fields(mistral, transformer_engine=False, **layout)  # our own attention gathers key and value


def test_rotary_kernel_only_where_there_is_one(fields: Any) -> None:
    qwen = architecture_from_config(config("qwen2").to_dict())
    assert fields(qwen, transformer_engine=True)["apply_rope_fusion"] is True
    assert "apply_rope_fusion" not in fields(qwen, transformer_engine=False)
    glm = architecture_from_config(config("glm4").to_dict())
    made = fields(glm, transformer_engine=True)
    assert (made["rotary_interleaved"], made["apply_rope_fusion"]) == (True, False)


def test_yarn_lengthens_the_scores_of_whole_heads(fields: Any) -> None:
    factor = 0.1 * math.log(4) + 1
    yarn = architecture_from_config(config("qwen3_yarn").to_dict())
    whole = fields(yarn, transformer_engine=True)
    assert whole["apply_rope_fusion"] is True
    assert whole["softmax_scale"] == pytest.approx(factor**2 / math.sqrt(16))


def test_megatron_reads_the_length_of_a_rotated_part() -> None:
    part = transformer_config.transformer_config(
        architecture_from_config(config("glm4_yarn").to_dict()),
        MegatronConfig(),
        transformer_engine=False,
    )
    assert part.softmax_scale is None
    wanted = pytest.approx(0.1 * math.log(4) + 1, rel=1e-12)
    assert _yarn_get_concentration_factor_from_config(part) == wanted
