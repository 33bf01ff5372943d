"""Looks at the model's files before Ray is started: a rank would find the same, minutes later."""

from __future__ import annotations

from herl_megatron.config.schema import ModelConfig
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.models.hf_config import read_architecture, read_config
from herl_megatron.models.hf_reader import HFFolder


def check_model(model: ModelConfig, *, trains: bool) -> None:
    """Read the model's config.json and, where it is trained, the names and shapes of its weights;
    a stored output layer that the config ties must equal the embedding in any case.

    trains: whether Megatron-Core has to express the model; engines take more than it does.

    Raises:
        ValueError: a file that cannot be read or is missing, a value that no model can have, a
            model that cannot be trained, weights of another one.
    """
    if not trains:
        tied = bool(read_config(model.path).get("tie_word_embeddings"))
        if not model.random_init:
            HFFolder(model.path).check_tied_head(tied=tied)
        return
    architecture = read_architecture(model.path)
    if model.random_init:
        return
    if model.megatron_path:
        # Imported here: it needs torch.distributed.checkpoint, a tenth of the time of the imports.
        from herl_megatron.megatron.convert.megatron_reader import MegatronFolder

        MegatronFolder(model.megatron_path, architecture).check()
    else:
        HFFolder(model.path).check(architecture)


def check_vocabulary(tokenizer: ChatTokenizer, model: ModelConfig) -> None:
    """Raise ValueError where the tokenizer gives ids that the model has no embedding for."""
    rows = int(read_config(model.path)["vocab_size"])
    if tokenizer.largest_id >= rows:
        raise ValueError(
            f"model.path={model.path!r}: the tokenizer gives ids up to {tokenizer.largest_id}, but"
            f" the model has vocab_size {rows} in config.json; take the tokenizer of this model"
        )
