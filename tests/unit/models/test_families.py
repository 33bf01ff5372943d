"""A family is a file: what is known of one by name stands nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import transformers

import herl_megatron
from herl_megatron.config.rules.data import SUPPORTED_MODELS
from herl_megatron.models.registry import FAMILIES

PACKAGE = Path(herl_megatron.__file__).parent
MAY_NAME_THEM = (
    "models/families/",
    "models/registry.py",  # lists the files
    "config/rules/data.py",  # the plain list of what is supported
    "data/toy_model.py",  # makes a model and a tokenizer of one family
    "data/smollm2.py",
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
