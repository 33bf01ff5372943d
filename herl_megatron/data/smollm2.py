"""SmolLM2-135M-Instruct as a Hugging Face folder, from a quantised GGUF file.

Transformers reads GGUF through the package `gguf`, which only this conversion needs; put it on
PYTHONPATH. What it reads it marks as quantised and does not save, so the weights move into a fresh
model without that mark.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
PARAMETERS = 134_515_008
"""As published with the model; the output layer is the embedding."""
_DROPPED = ("quantization_config", "_model_name_or_path", "dtype", "transformers_version")


def folder_from_gguf(gguf: Path, out: Path) -> None:
    """Write the de-quantised model of `gguf`, in fp32, and its tokenizer to the folder `out`.

    Raises:
        ValueError: the file holds another model than SmolLM2-135M.
        ImportError: the package `gguf` is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    fields = {k: v for k, v in read.config.to_dict().items() if k not in _DROPPED}
    # GGUF stores the epsilon in fp32, which is not 1e-5 as a Python number.
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")
    model = LlamaForCausalLM(LlamaConfig(**fields)).to(torch.float32)
    if model.num_parameters() != PARAMETERS:
        raise ValueError(
            f"{gguf} holds a model of {model.num_parameters():,} parameters, SmolLM2-135M has "
            f"{PARAMETERS:,}: give that model's file"
        )
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    for file in out.glob("*.safetensors"):  # written for its owner alone
        file.chmod((out / "config.json").stat().st_mode & 0o777)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(out)


def answer(folder: Path, question: str, *, max_tokens: int = 24) -> str:
    """The model's greedy answer to one user message, by Transformers in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=max_tokens, do_sample=False)
    text: str = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def check_answers(folder: Path) -> str:
    """The answer to QUESTION; a folder that was converted wrongly speaks no sense.

    Raises:
        ValueError: it does not name ANSWER.
    """
    said = answer(folder, QUESTION)
    if ANSWER not in said:
        raise ValueError(
            f"the model in {folder} answers {QUESTION!r} with {said!r}, which does not name "
            f"{ANSWER}: remove the folder and make it again"
        )
    return said


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
