"""Tokenizer and random model of the toy task, written as a Hugging Face folder.

A byte-level BPE whose merges build every word of the toy task, so that a known word is one token
and any other text falls back to bytes: encoding loses nothing. It is a Qwen2 tokenizer because
`transformers` 5 rebuilds that class for every Qwen2 model, whatever `tokenizer.json` says.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herl_megatron.data.toy import WarmStart, draw_sft_rows
from herl_megatron.files.os_errors import with_usual_mode

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


def build_tokenizer() -> Any:
    """The toy task's `Qwen2Tokenizer`; the same every time, whatever the task's seed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers.models.qwen2 import Qwen2Tokenizer

    make_tokenizer: Any = Qwen2Tokenizer  # Typed loosely: transformers' constructors are untyped.
    split = make_tokenizer().backend_tokenizer.pre_tokenizer
    words = {word for text in _vocabulary_texts() for word, _ in split.pre_tokenize_str(text)}
    trained = Tokenizer(models.BPE())
    # Every word once and no limit on merges: training ends when every word is one token.
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 20,
        min_frequency=0,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    trained.train_from_iterator(sorted(words), trainer)
    bpe = json.loads(trained.to_str())["model"]
    return make_tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        unk_token=PADDING,
        pad_token=PADDING,
        eos_token=END_OF_TURN,
        extra_special_tokens=[START_OF_TURN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


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
    # Imported here: they bring torch, which reading the module does not need.
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
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
    with with_usual_mode(file := folder / "model.safetensors"):
        save_file(weights, file, metadata={"format": "pt"})


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
        # 0.04 and less leave attention near uniform: some seeds then never learn, within the warm
        # start, to take their words from the topic.
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
