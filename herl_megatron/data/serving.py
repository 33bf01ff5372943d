"""What a server has to know of a policy's tokens: written beside its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.chat_template import has_template

_GENERATION, _TOKENIZER = "generation_config.json", "tokenizer_config.json"


@dataclass(frozen=True)
class ServingFacts:
    """Where responses end, and whether `tokenizer.json` must be named as what counts."""

    end_token_ids: tuple[int, ...]
    name_file: bool


def read_serving_facts(folder: Path) -> ServingFacts | None:
    """As training takes them from a model's folder; None for a model without chat template.

    Raises:
        ValueError: as `ChatTokenizer`.
    """
    if not has_template(folder):
        return None
    tokenizer = ChatTokenizer(str(folder))
    return ServingFacts(tokenizer.end_token_ids, not tokenizer.is_as_others_load_it)


def write_serving_facts(facts: ServingFacts, folder: Path) -> None:
    """Into the configuration files of an exported model.

    `generation_config.json` gets the end tokens, which a server stops at. Where `transformers`
    would build another tokenizer than `tokenizer.json` says, the class that takes the file as it is
    is named.
    """
    ends = list(facts.end_token_ids)
    _update(folder / _GENERATION, {"eos_token_id": ends if len(ends) > 1 else ends[0]})
    if facts.name_file:
        _update(folder / _TOKENIZER, {"tokenizer_class": "PreTrainedTokenizerFast"})


def _update(file: Path, values: dict[str, Any]) -> None:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if {key: found.get(key) for key in values} == values:
        return
    text = json.dumps(found | values, indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")
