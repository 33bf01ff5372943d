"""Bytes that a forward pass keeps for its backward pass, counted tensor by tensor.

The method is that of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large
Transformer Models", arXiv 2205.05198, section 4.1), for this project's layers: RMSNorm,
grouped-query attention without stored scores, rotary embedding, SwiGLU, experts. Per token and
layer, with b bytes per element, q and kv the widths of queries and keys, TP t, and s = t under
sequence parallelism, else 1:

    norms        2 (n h + b h) / s         input and output; n = b, or 8 without a fused norm
    q, k norm    (n + b) (q + kv) / t      models that have them
    output norms 2 n h / s                 models that have them: on attention's and MLP's output
    attention    b (2 q + 3 kv) / t + b q / t + 4 heads / t      q k v, rotated q k, output, log-sum
    dense MLP    5 b f / t                 gate and up (2), silu, up once more, product
    experts      k (b h e + 6 b f_e) / t   of each token's k experts, the probability's product too;
                                           e ranks share each expert's matrices (ETP, else e = t)

Under context parallelism c a rank counts the tokens that it holds, 1 / c of a micro-batch.
Transformer Engine passes keys and values round and keeps its own; without it (`megatron.attention`)
a layer keeps those of whole rows, 2 b kv c / t per token held, in place of its own, the two chunks'
outputs once more side by side, and their masks of 2 c + 1 squares of a chunk.

Full recomputation keeps b h / s, the input, of each layer and, for one layer at a time, the above.
Recomputing core attention alone saves nothing here, since no scores are stored. Experts are taken
to be loaded evenly. `tests/distributed/test_plan_memory.py` compares with what real runs keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.stages import layers_of_rank

_BYTES = {"fp32": 4, "bf16": 2}
_UNFUSED_NORM_BYTES = 8  # PyTorch's RMSNorm on the CPU keeps two float32 copies per element
_LOSS_BYTES_PER_TOKEN = 64  # log-probs, entropy, masks and the loss's own terms, a few each


@dataclass(frozen=True)
class MicroBatchShape:
    """What a rank holds of the largest micro-batch: all its tokens, those of the longest row, and
    those that have logits."""

    tokens: int
    longest_row: int
    response_tokens: int

    def share(self, ranks: int) -> MicroBatchShape:
        """What each of so many context-parallel ranks holds of it, rounded up."""
        return MicroBatchShape(
            *(-(-n // ranks) for n in (self.tokens, self.longest_row, self.response_tokens))
        )


@dataclass(frozen=True)
class ActivationModel:
    """The formulas above for one model and layout; `fused`: with Transformer Engine, on GPUs."""

    architecture: Architecture
    megatron: MegatronConfig
    fused: bool
    fp32_logits: bool = False

    @property
    def element_bytes(self) -> int:
        """Bytes of one activation."""
        return _BYTES[self.megatron.precision]

    def layer_bytes(self, layer: int, shape: MicroBatchShape) -> int:
        """What layer `layer` keeps of one micro-batch without recomputation."""
        per_token = self._attention_per_token() + self._mlp_per_token(layer)
        # Sines and cosines of queries and keys, one row of the longest sequence each.
        rope = 4 * self.element_bytes * self.architecture.head_dim * self._rope_rows(shape)
        return int(per_token * shape.tokens) + rope + self._mask_bytes(shape)

    def layer_input_bytes(self, shape: MicroBatchShape) -> int:
        """The hidden states between two layers, `[tokens, hidden]`."""
        return int(shape.tokens * self.architecture.hidden_size * self.element_bytes / self._split)

    def peak_bytes(self, pp_rank: int, shape: MicroBatchShape, micro_batches: int) -> int:
        """Kept at most by pipeline rank `pp_rank` in a step of so many micro-batches."""
        # Chunks of one rank differ by a layer at most; the longest is taken for all in flight.
        longest = max(chunk_layers(self.architecture, self.megatron, pp_rank), key=len)
        flying = chunks_in_flight(self.megatron, pp_rank, micro_batches)
        kept = flying * self.kept_bytes(longest, shape)
        again = self.recompute_bytes(longest, shape)
        if pp_rank < self.megatron.pipeline_parallel - 1:
            return kept + again
        # The head's backward pass is over before the last layer is computed again.
        return kept + max(self.head_kept_bytes(shape), again)

    def kept_bytes(self, layers: tuple[int, ...], shape: MicroBatchShape) -> int:
        """What the layers of one model chunk keep of one micro-batch until its backward pass."""
        if self.megatron.recompute == "full":
            return len(layers) * self.layer_input_bytes(shape)
        return sum(self.layer_bytes(layer, shape) for layer in layers)

    def recompute_bytes(self, layers: tuple[int, ...], shape: MicroBatchShape) -> int:
        """What full recomputation adds for the layer whose backward pass runs."""
        if self.megatron.recompute != "full":
            return 0
        return max(self.layer_bytes(layer, shape) for layer in layers)

    def head_kept_bytes(self, shape: MicroBatchShape) -> int:
        """Kept by the last stage for one micro-batch: final norm, picked states, small logits."""
        hidden, each = self.architecture.hidden_size, self.element_bytes
        norm = shape.tokens * hidden * (self._norm + each) / self._split
        picked = shape.response_tokens * (hidden * each + _LOSS_BYTES_PER_TOKEN)
        chunk = min(shape.response_tokens, self.megatron.log_prob_chunk_tokens)
        logits = chunk * self._vocab_shard * self._logit_bytes  # the last chunk's
        return int(norm + picked + logits)

    def head_working_bytes(self, *, backward: bool, scratch_bytes: int) -> int:
        """Float32 pieces of one chunk's logits and, forward, the logits themselves; backward those
        lie where they were kept, but the output matrix's gradient comes to be."""
        each = self.element_bytes
        if not backward:
            logits = self.megatron.log_prob_chunk_tokens * self._vocab_shard * self._logit_bytes
            return logits + 3 * scratch_bytes
        matrix = self._vocab_shard * self.architecture.hidden_size
        narrowed = self.megatron.log_prob_chunk_tokens * self._vocab_shard * each
        copied = narrowed if self._logit_bytes != each else 0  # of the logits' gradient
        return matrix * (4 + each) + copied + 3 * scratch_bytes

    @property
    def _logit_bytes(self) -> int:
        return 4 if self.fp32_logits else self.element_bytes

    @property
    def _vocab_shard(self) -> int:
        return -(-self.architecture.vocab_size // self.megatron.tensor_parallel)

    @property
    def _split(self) -> int:
        """Over how many ranks norms and residuals are cut."""
        return self.megatron.tensor_parallel if self.megatron.sequence_parallel else 1

    @property
    def _norm(self) -> int:
        return self.element_bytes if self.fused else _UNFUSED_NORM_BYTES

    def _rope_rows(self, shape: MicroBatchShape) -> int:
        return shape.tokens if self.megatron.packing else shape.longest_row

    def _attention_per_token(self) -> float:
        a, each, tp = self.architecture, self.element_bytes, self.megatron.tensor_parallel
        q = a.num_heads * a.head_dim
        kv = max(a.num_kv_heads, tp) * a.head_dim  # TP above the number of key heads repeats them
        norm = a.hidden_size * (self._norm + each) / self._split
        heads = each * (3 * q + 3 * kv) / tp + 4 * a.num_heads / tp
        if self._gathers_keys:
            heads = each * (3 * q + 2 * kv * self.megatron.context_parallel) / tp
            heads += 4 * a.num_heads / tp
        qk_norm = (self._norm + each) * (q + kv) / tp - each * (q + kv) / tp if a.qk_norm else 0
        return norm + heads + qk_norm + self._output_norm()

    def _output_norm(self) -> float:
        """Its input; the output is added and not kept."""
        a = self.architecture
        return a.hidden_size * self._norm / self._split if a.output_norms else 0.0

    @property
    def _gathers_keys(self) -> bool:
        return self.megatron.context_parallel > 1 and not self.fused

    def _mask_bytes(self, shape: MicroBatchShape) -> int:
        """One set of masks for padded rows; packed rows have theirs each, the longest the most."""
        if not self._gathers_keys:
            return 0
        chunk = shape.longest_row // 2
        rows = shape.tokens / shape.longest_row if self.megatron.packing else 1
        squares = 2 * self.megatron.context_parallel + 1
        return int(rows * squares * chunk**2 * self.element_bytes)

    def _mlp_per_token(self, layer: int) -> float:
        a, each, tp = self.architecture, self.element_bytes, self.megatron.tensor_parallel
        norm = a.hidden_size * (self._norm + each) / self._split
        if a.experts is None or not a.experts.layers[layer]:
            return norm + 5 * each * a.ffn_size / tp + self._output_norm()
        # An expert's ETP ranks see the tokens of as many of the TP ranks' shares.
        per_expert = each * (a.hidden_size * self.megatron.etp + 6 * a.experts.ffn_size) / tp
        router = 14 * a.experts.count / self._split  # scores, probabilities and the routing map
        return norm + a.experts.top_k * per_expert + router


def chunk_layers(
    architecture: Architecture, megatron: MegatronConfig, pp_rank: int
) -> list[tuple[int, ...]]:
    """Layers of each model chunk of a pipeline rank, in Megatron's interleaved order."""
    return layers_of_rank(
        architecture.num_layers,
        rank=pp_rank,
        pp=megatron.pipeline_parallel,
        vpp=megatron.virtual_pipeline or 1,
    )


def chunks_in_flight(megatron: MegatronConfig, pp_rank: int, micro_batches: int) -> int:
    """Forward passes of model chunks that await their backward pass at the peak.

    1F1B (Narayanan et al. 2021, arXiv 2104.04473, section 2.2): rank p of P starts P - p
    micro-batches before its first backward pass; interleaved, 2 (P - p - 1) + (V - 1) P + 1.
    """
    pp, vpp = megatron.pipeline_parallel, megatron.virtual_pipeline or 1
    total = micro_batches * vpp
    if vpp == 1:
        return min(total, pp - pp_rank)
    return min(total, 2 * (pp - pp_rank - 1) + (vpp - 1) * pp + 1)
