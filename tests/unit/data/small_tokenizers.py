"""Small tokenizers of the kinds that models have, as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(words: tuple[str, ...] = ()) -> Tokenizer:
    """Bytes, and each of `words` by merges from the left."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(*, normalize: bool = False) -> Tokenizer:
    """A SentencePiece model: ASCII characters, `<s>` and `</s>` among its own pieces."""
    characters = [("\u2581", -2.0), *((chr(i), -3.0) for i in range(33, 127))]
    own = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\n", -3.0)]
    tokenizer = Tokenizer(models.Unigram([*own, *characters], unk_id=0))
    if normalize:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def save(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    template: str = CHATML,
    special: tuple[str, ...] = CHATML_TOKENS,
    plain: tuple[str, ...] = (),
    **tokens: str,
) -> str:
    """Write the tokenizer with added tokens that are special only in `added_tokens`, and others."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, **tokens
    )
    made.save_pretrained(folder)
    return str(folder)


def change_json(file: Path, **values: Any) -> None:
    """Give keys of a JSON file new values."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(found | values))
