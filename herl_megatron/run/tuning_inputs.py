"""What `herl sft` and `herl dpo` read besides the rows that they fit: held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herl_megatron.config.loop_keys import LoopKeys
from herl_megatron.config.schema import Config
from herl_megatron.data.chat import ChatTokenizer, open_chat_tokenizer
from herl_megatron.data.fingerprints import fingerprints, of_fitted_rows
from herl_megatron.data.prompt_source import check_unseen
from herl_megatron.run.inputs import Inputs, load_inputs
from herl_megatron.run.model_files import check_model, check_vocabulary
from herl_megatron.types import Message


@dataclass(frozen=True)
class TuningInputs:
    """evaluation: held-out prompts with all that samples and scores them reads; None without."""

    evaluation: Inputs | None
    fingerprints: Mapping[str, str]
    """Of all that decides results, by name."""


def open_tokenizer(config: Config) -> ChatTokenizer:
    """That of the model, which is one that can be trained.

    Raises:
        ValueError: a file of the model cannot be used, or it has no chat template or end token.
    """
    check_model(config.model, trains=True)
    tokenizer = open_chat_tokenizer(config.model, config.data)
    check_vocabulary(tokenizer, config.model)
    return tokenizer


def load_tuning_inputs(
    config: Config,
    tokenizer: ChatTokenizer,
    *,
    loop: LoopKeys,
    rows: Sequence[Any],
    seen: Mapping[tuple[Message, ...], str],
) -> TuningInputs:
    """Held-out prompts where the run evaluates, and the fingerprints of what it reads.

    rows: what is fitted, each as JSON values; seen: their prompts, with where each stands.

    Raises:
        ValueError: as `load_inputs`, and a held-out prompt is among `seen`.
    """
    own = fingerprints(
        config.model, tokenizer, train=(), held_out=(), check_modules=(), text_files={},
        weights=loop.purpose == "dpo",  # the reference is the model as it starts
    )  # fmt: skip
    key = f"{loop.purpose}.data"
    own[key] = of_fitted_rows(rows)
    if not loop.evaluates:
        return TuningInputs(None, own)
    held_out = load_inputs(config, training=False, reads_weights=False)
    check_unseen(seen, held_out.eval, key=key)
    return TuningInputs(held_out, dict(held_out.fingerprints) | own)
