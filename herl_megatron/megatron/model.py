"""Build this rank's part of a model: one GPTModel per pipeline chunk that it holds.

Calling a chunk, padded rows (`position_ids` is not read with rotary embedding but must be given):

    chunk(input_ids=ids, position_ids=positions, attention_mask=None)      # both [batch, seq]

Rows are padded on the RIGHT, with any token id, to one `seq`; under sequence parallelism `seq` is
a multiple of TP. Packed rows: `ids` and `positions` are `[1, tokens]` (`tokens` a multiple of TP
under sequence parallelism; padding belongs to the last row or is a row of its own), and

    packed = packed_sequence_params(cu_seqlens)     # int32 [rows + 1], starts at 0, ends at tokens
    chunk(input_ids=ids, position_ids=positions, attention_mask=None, packed_seq_params=packed)

Under context parallelism (CP) `ids` and `positions` are what the rank holds of every row
(`batching.context_parallel`), rows being padded to a multiple of 2 * CP; `cu_seqlens` stays that of
the whole rows, and `seq` and `tokens` below count what the rank holds.

The last stage's last chunk returns logits `[batch, seq, padded_vocab / tp]` in the compute dtype
(packed: `[1, tokens, padded_vocab / tp]`); those of tokens >= `vocab_size` are padding, to be
masked (`algos.log_probs` does). Every other chunk returns hidden states `[seq, batch, hidden]`
(`seq / tp` under sequence parallelism) for the pipeline schedule to send; it receives its input
through `set_input_tensor`, and needs `input_ids` of the right shape only on the first stage.

`chunk.config` is Megatron's TransformerConfig; the schedule's hooks (`grad_scale_func`,
`finalize_model_grads_func`, `no_sync_func`, ...) are set on it by the optimizer's owner. Weights
are NaN until `load_weights.load_hf_weights` or `load_weights.init_random_weights` has filled them.
"""

from __future__ import annotations

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.device import has_transformer_engine
from herl_megatron.megatron.attention import CausalAttention
from herl_megatron.megatron.norms import RMSNorm
from herl_megatron.megatron.output_norms import add_output_norms
from herl_megatron.megatron.rotary import rope_arguments, set_frequencies
from herl_megatron.megatron.transformer_config import transformer_config
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.groups import Groups
from herl_megatron.models.parameters import padded_vocab_size


def build_model(
    architecture: Architecture, config: MegatronConfig, groups: Groups
) -> list[GPTModel]:
    """The GPTModel chunks of this rank, on its device, in the compute dtype, weights still NaN.

    Raises:
        ValueError: the architecture cannot be cut as the layout asks.
    """
    use_te = groups.device.kind == "cuda" and has_transformer_engine()
    megatron_config = transformer_config(architecture, config, transformer_engine=use_te)
    return [
        _build_chunk(
            architecture,
            megatron_config,
            groups,
            chunk=chunk if config.virtual_pipeline is not None else None,
            use_te=use_te,
        )
        for chunk in range(groups.vpp)
    ]


def packed_sequence_params(cu_seqlens: torch.Tensor) -> PackedSeqParams:
    """Megatron's description of packed rows; `cu_seqlens` is int32 `[rows + 1]`."""
    longest = int(cu_seqlens.diff().max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def _build_chunk(
    architecture: Architecture,
    config: TransformerConfig,
    groups: Groups,
    *,
    chunk: int | None,
    use_te: bool,
) -> GPTModel:
    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=use_te, normalization="RMSNorm", vp_stage=chunk
    )
    if not use_te:
        spec = _with_own_modules(spec)
    first_chunk, last_chunk = chunk in (None, 0), chunk in (None, groups.vpp - 1)
    model = GPTModel(
        config,
        spec,
        vocab_size=padded_vocab_size(architecture.vocab_size, groups.tp.size),
        max_sequence_length=architecture.max_positions,
        pre_process=groups.pp.is_first and first_chunk,
        post_process=groups.pp.is_last and last_chunk,
        share_embeddings_and_output_weights=architecture.tied,
        parallel_output=True,
        vp_stage=chunk,
        **rope_arguments(architecture),
    )
    set_frequencies(model, architecture)
    if architecture.scaled_embedding and model.pre_process:
        model.embedding.register_forward_hook(_scale_embedding)
    if architecture.output_norms:
        assert architecture.experts is None, "experts' outputs have no norm"
        add_output_norms(model, _norm_class(use_te=use_te))
    _mark_experts(model, groups)
    return model.to(groups.torch_device)


def _scale_embedding(
    embedding: torch.nn.Module, inputs: tuple[object, ...], embedded: torch.Tensor
) -> torch.Tensor:
    """`[seq, batch, hidden]` times sqrt(hidden), which is rounded to the same dtype before."""
    scale = embedded.shape[-1] ** 0.5
    return embedded * torch.full((), scale, dtype=embedded.dtype, device=embedded.device)


def _norm_class(*, use_te: bool) -> type[torch.nn.Module]:
    """The norm of the layer spec that is used."""
    if not use_te:
        return RMSNorm
    # Imported here: without Transformer Engine there is no such name.
    from megatron.core.extensions.transformer_engine import TENorm

    norm: type[torch.nn.Module] = TENorm
    return norm


def _mark_experts(model: GPTModel, groups: Groups) -> None:
    """Have gradients of experts summed over the replicas that experts have.

    Megatron's layers mark their weights so under EP only. With EP 1 and ETP other than TP they
    would be summed over DP like dense weights, and replicas on TP ranks part in silence.
    """
    if groups.expert_tp.size == groups.tp.size:
        return
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            setattr(parameter, "allreduce", False)  # noqa: B010


def _with_own_modules(block: TransformerBlockSubmodules) -> TransformerBlockSubmodules:
    """Replace what Megatron's local layer spec lacks: norms under SP, attention on packed rows,
    and checkpoints of experts that a GPU can read."""
    block.layer_norm = RMSNorm
    for layer in block.layer_specs:
        parts = layer.submodules
        # With qk_layernorm off the specs hold IdentityOp, which must stay.
        for holder, name in (
            (parts, "input_layernorm"),
            (parts, "pre_mlp_layernorm"),
            (parts.self_attention.submodules, "q_layernorm"),
            (parts.self_attention.submodules, "k_layernorm"),
        ):
            if vars(holder)[name] is WrappedTorchNorm:
                setattr(holder, name, RMSNorm)
        parts.self_attention.submodules.core_attention = CausalAttention
        if parts.mlp.module is MoELayer:
            # In checkpoints the local spec has the norm before experts fused with a linear layer,
            # as before a dense MLP; Transformer Engine fuses none there and gives it its own name.
            names = parts.sharded_state_dict_keys_map
            parts.sharded_state_dict_keys_map = {
                own: stored for own, stored in names.items() if own != "pre_mlp_layernorm."
            }
    return block
