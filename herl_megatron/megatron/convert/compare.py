"""Compare a Megatron checkpoint with a Hugging Face folder: tensors bit for bit, and logits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from herl_megatron.megatron.convert.megatron_reader import MegatronFolder
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.hf_reader import HFFolder
from herl_megatron.models.parameters import parameters


def compare_tensors(
    hf: HFFolder, megatron: MegatronFolder, architecture: Architecture, dtype: torch.dtype | None
) -> tuple[int, list[str]]:
    """(tensors compared, names of those that differ in dtype or in any bit)."""
    count, different = 0, []
    for parameter in parameters(architecture):
        if parameter.tied_copy:
            continue
        pairs = zip(
            parameter.hf_names, hf.tensors(parameter), megatron.tensors(parameter), strict=True
        )
        for name, wanted, found in pairs:
            wanted = wanted if dtype is None else wanted.to(dtype)
            same = found.dtype is wanted.dtype and torch.equal(
                found.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8)
            )
            count += 1
            if not same:
                different.append(name)
    return count, different


def logits_difference(hf: Path, megatron: Path, *, tokens: int) -> float:
    """Largest absolute difference between Megatron's and transformers' logits, both in fp32."""
    import transformers

    from herl_megatron.config.schema import MegatronConfig
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.load_weights import load_megatron_weights
    from herl_megatron.megatron.model import build_model
    from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel

    architecture = read_architecture(str(hf))
    config = MegatronConfig(precision="fp32")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(architecture.vocab_size, (2, tokens), generator=generator)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        groups = init_parallel(
            config, rank=0, world_size=1, init_method=f"file://{folder}/store",
            device=choose_device("cpu"), seed=0,
        )  # fmt: skip
        chunks = build_model(architecture, config, groups)
        load_megatron_weights(chunks, str(megatron), architecture, groups)
        positions = torch.arange(tokens).expand(2, tokens)
        ours = chunks[0].eval()(input_ids=ids, position_ids=positions, attention_mask=None)
        shutdown_parallel()
        model = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
        theirs = model.eval()(ids).logits
    return float((ours[..., : architecture.vocab_size] - theirs).abs().max())
