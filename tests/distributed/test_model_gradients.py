"""Log-probs and gradients of a loss on them: Megatron on one rank against Hugging Face.

Every recompute mode, padded and packed rows. (Gradients over TP, PP and DP ranks go through the
optimizer's finalisation and are tested with the actor.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks

pytestmark = pytest.mark.distributed

_LENGTHS = (13, 6, 9)


def _rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(0, tiny_models.VOCAB, (n,), generator=generator) for n in _LENGTHS]


def work(
    rank: int,
    world_size: int,
    init_method: str,
    folder: str,
    recompute: Literal["none", "selective", "full"],
) -> tuple[int, list[tuple[torch.Tensor, dict[str, torch.Tensor]]]]:
    """Padded, then packed: log-probs `[tokens]` of all rows and the gradient of their sum.

    First, how often the first layer's attention was computed in both together.
    """
    from herl_megatron.config.schema import MegatronConfig
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.load_weights import load_hf_weights
    from herl_megatron.megatron.model import build_model, packed_sequence_params
    from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel
    from herl_megatron.models.hf_config import read_architecture

    config = MegatronConfig(precision="fp32", timeout_s=60, recompute=recompute)
    groups = init_parallel(
        config, rank=0, world_size=1, init_method=init_method, device=choose_device("cpu"), seed=0
    )
    architecture = read_architecture(folder)
    (chunk,) = build_model(architecture, config, groups)
    load_hf_weights([chunk], folder, architecture, groups)
    computed: list[int] = []
    attention = chunk.decoder.layers[0].self_attention.core_attention
    attention.register_forward_hook(lambda *_: computed.append(1))
    answers = []
    for packed in (False, True):
        rows = _rows()
        if packed:
            ids = torch.cat(rows)[None]
            ends = torch.tensor([0, *_LENGTHS]).cumsum(0).int()
            kwargs = {"packed_seq_params": packed_sequence_params(ends)}
            real = torch.ones_like(ids, dtype=torch.bool)
        else:
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=4)
            kwargs = {}
            real = torch.arange(ids.shape[1]) < torch.tensor(_LENGTHS)[:, None]
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        logits = chunk(input_ids=ids, position_ids=positions, attention_mask=None, **kwargs)
        targets = (ids * 7 + 3) % tiny_models.VOCAB  # any fixed target will do
        log_p = torch.log_softmax(logits[..., : tiny_models.VOCAB], dim=-1)
        log_probs = log_p.gather(-1, targets[..., None])[..., 0]
        chunk.zero_grad()
        log_probs[real].sum().backward()
        gradients = {name: p.grad.clone() for name, p in chunk.named_parameters()}
        answers.append((log_probs[real].detach(), gradients))
    shutdown_parallel()
    return len(computed), answers


def _reference(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    log_probs = []
    for row in _rows():
        log_p = torch.log_softmax(model(input_ids=row[None]).logits[0].double(), dim=-1)
        targets = (row * 7 + 3) % tiny_models.VOCAB
        log_probs.append(log_p.gather(1, targets[:, None])[:, 0])
    torch.cat(log_probs).sum().backward()
    return torch.cat(log_probs).detach(), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


K_NORM = {"self_attention.k_layernorm.weight": "self_attn.k_norm.weight"}
OUTPUT_NORM = "self_attention.linear_proj.post_layernorm.weight"
MLP_OUTPUT_NORM = "mlp.linear_fc2.post_layernorm.weight"
OWN: dict[str, dict[str, str]] = {
    "qwen2_tied": {},
    "qwen3": K_NORM,
    "glm4": {
        "mlp.linear_fc1.weight": "mlp.gate_up_proj.weight",
        "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
        OUTPUT_NORM: "post_self_attn_layernorm.weight",
        MLP_OUTPUT_NORM: "post_mlp_layernorm.weight",
    },
    "gemma3_text": K_NORM
    | {
        "pre_mlp_layernorm.weight": "pre_feedforward_layernorm.weight",
        OUTPUT_NORM: "post_attention_layernorm.weight",
        MLP_OUTPUT_NORM: "post_feedforward_layernorm.weight",
    },
}
"""What a layer has that not all families have, here and there."""


@pytest.mark.parametrize("name", OWN)
def test_log_probs_and_gradients_equal_hf(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    want, hf = _reference(tiny_models.save(name, tmp_path))
    layer, hf_layer = "decoder.layers.2.", "model.layers.2."
    pairs = {
        layer + "self_attention.linear_proj.weight": hf[hf_layer + "self_attn.o_proj.weight"],
        layer + "input_layernorm.weight": hf[hf_layer + "input_layernorm.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
    }
    for name_here, name_there in OWN[name].items():
        pairs[layer + name_here] = hf[hf_layer + name_there]
    if name != "glm4":
        pairs[layer + "mlp.linear_fc1.weight"] = torch.cat(
            [hf[hf_layer + f"mlp.{x}_proj.weight"] for x in ("gate", "up")]
        )
    modes = {"none": 2, "selective": 4, "full": 4}
    answers = {}
    for mode, times in modes.items():
        ((computed, answers[mode]),) = run_ranks(work, 1, str(tmp_path), mode)
        assert computed == times, f"{mode}: attention ran {computed} times in two passes"
    for mode in modes:
        for log_probs, gradients in answers[mode]:
            assert (log_probs - want).abs().max() < 5e-5
            for ours, theirs in pairs.items():
                error = (gradients[ours] - theirs).norm() / theirs.norm()
                assert error < 1e-5, f"{mode} {ours}: {error}"
            embedding = gradients["embedding.word_embeddings.weight"]
            theirs = hf["model.embed_tokens.weight"]
            assert (embedding[: tiny_models.VOCAB] - theirs).norm() / theirs.norm() < 1e-5
            assert not embedding[tiny_models.VOCAB :].any(), "vocabulary padding got a gradient"
    # Recomputation repeats the same operations, so gradients are bit-equal.
    for mode in ("selective", "full"):
        for (_, kept), (_, recomputed) in zip(answers["none"], answers[mode], strict=True):
            assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
