"""Tokenizer and random model of the toy task, written as a Hugging Face folder.

The vocabulary is the toy task's words plus every byte, without merges: a known word is one token
and any other text falls back to bytes, so encoding loses nothing and nothing has to be trained.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from herl_megatron.data.toy import WarmStart, draw_sft_rows

END_OF_TURN = "<|im_end|>"
START_OF_TURN = "<|im_start|>"
PADDING = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VOCABULARY_ROWS = 6000


def build_tokenizer() -> Tokenizer:
    """The word-level tokenizer; the same every time, whatever the task's seed."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = {word for text in _vocabulary_texts() for word, _ in split.pre_tokenize_str(text)}
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *sorted(words)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (PADDING, START_OF_TURN, END_OF_TURN)]
    )
    return tokenizer


def _vocabulary_texts() -> Iterator[str]:
    """Texts of supervised rows, answers in every case, and the words of the chat template."""
    yield from ("system\n", "user\n", "assistant\n")
    rows = draw_sft_rows(random.Random("toy/vocabulary"), exclude=(), settings=WarmStart())
    for *prompt, answer in itertools.islice(rows, _VOCABULARY_ROWS):
        yield from (message.content for message in prompt)
        yield from (answer.content, answer.content.upper(), answer.content.lower())


def write_model_folder(folder: Path, *, seed: int) -> None:
    """Write tokenizer, chat template, configs and random safetensors weights.

    About 0.6 M parameters: Qwen2 with tied embeddings, loadable by `transformers` and vLLM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Typed loosely: transformers' constructors are untyped. Imported here: seconds, torch included.
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2ForCausalLM

    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(
        tokenizer_object=build_tokenizer(),
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    config = _model_config(tokenizer)
    config.save_pretrained(folder)
    make_generation_config: Any = GenerationConfig
    make_generation_config(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)
    make_model: Any = Qwen2ForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(config)
    # `named_parameters` lists the tied embedding once, as Hugging Face files store it.
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _model_config(tokenizer: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
