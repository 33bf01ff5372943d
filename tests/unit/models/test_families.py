"""A family is a file: what is known of one by name stands nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

import herl_megatron
from herl_megatron.config.rules.data import SUPPORTED_MODELS
from herl_megatron.models.known_families import FAMILIES, architecture_from_config
from herl_megatron.models.rope import Rope
from tests.distributed import tiny_models

PACKAGE = Path(herl_megatron.__file__).parent
MAY_NAME_THEM = (
    "models/families/",
    "models/known_families.py",  # lists the files
    "config/rules/data.py",  # the plain list of what is supported
    "data/toy_model.py",  # makes a model and a tokenizer of one family
    "data/smollm2.py",
    "reproduce/",  # the paper's models are parts of its rows' names
    "commands/reproduce.py",
    "commands/reporting.py",
)


def test_supported_families_are_those_with_a_file() -> None:
    assert {name: family.language_model for name, family in FAMILIES.items()} == SUPPORTED_MODELS
    files = {path.stem for path in (PACKAGE / "models" / "families").glob("*.py")} - {"__init__"}
    assert files == set(FAMILIES)


def test_language_models_are_those_of_transformers() -> None:
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert {name: causal[name] for name in SUPPORTED_MODELS} == SUPPORTED_MODELS


def test_no_other_code_asks_for_a_family_by_name() -> None:
    known = {*SUPPORTED_MODELS, *SUPPORTED_MODELS.values()}
    known |= {re.sub(r"\d.*", "", name) for name in SUPPORTED_MODELS}  # qwen, glm
    word = re.compile(rf"\b({'|'.join(sorted(known))})\b", re.IGNORECASE)
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(MAY_NAME_THEM):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in documentation and word.search(node.value):
                    found.append(f"{name}:{node.lineno} {node.value!r}")
    assert found == []


def test_gemma_3_layer_by_layer() -> None:
    a = architecture_from_config(tiny_models.config("gemma3_text").to_dict())
    assert [a.has_window(layer) for layer in range(4)] == [True, False, True, True]
    assert (a.rope, a.window_rope) == (Rope(1e6, "linear", 8.0), Rope(1e4))
    assert a.score_scale == 24**-0.5
    whole = {"layer_types": ["full_attention"] * 4, "sliding_window": None}
    a = architecture_from_config(tiny_models.config("gemma3_text").to_dict() | whole)
    assert a.window is None and not any(a.has_window(layer) for layer in range(4))


YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}
YARN |= {"original_max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("glm4", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; glm4 supports only 'silu'"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation is 'silu'; gemma3_text"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window is None; give the tokens"),
        ("gemma3_text", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1; it must be"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "has 1 entries, .*; it must have 4"),
        ("gemma3_text", {"layer_types": ["chunked_attention"] * 4}, "'chunked_attention'.; it mu"),
        ("gemma3_text", {"rope_parameters": {"full_attention": DEFAULT}}, "no object sliding_att"),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}},
            "full_attention has rope_type 'yarn', which makes scores larger in some",
        ),
    ],
)
def test_what_a_family_cannot_be_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        architecture_from_config(tiny_models.config(name).to_dict() | changes)
