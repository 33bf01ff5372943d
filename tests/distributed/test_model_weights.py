"""Random initialisation, the weight stream's dtype and memory, log-probs over TP, one adapter."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from herl_megatron.config.schema import MegatronConfig
from tests.distributed import tiny_models
from tests.distributed.harness import RankError, run_ranks

pytestmark = pytest.mark.distributed

_BUCKET_BYTES = 200_000
"""Several parameters per bucket; the largest parameter has 132 kB."""


class LiveBytes(TorchDispatchMode):
    """Bytes of CPU storages made inside the block and still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def ignore(self, tensors: Any) -> None:
        """Do not count storages that exist already."""
        self._seen |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def start(init_method: str, rank: int, world_size: int, **layout: Any) -> Any:
    """(config, groups) of a layout."""
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.parallel import init_parallel

    config = MegatronConfig(**{"precision": "fp32", "timeout_s": 60, **layout})
    groups = init_parallel(
        config,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device=choose_device("cpu"),
        seed=0,
    )
    return config, groups


def stream_random_model(
    rank: int,
    world_size: int,
    init_method: str,
    folder: str,
    layout: dict[str, Any],
    dtype: torch.dtype | None,
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]]]:
    """All tensors that this rank sends; per bucket: bytes, peak extra bytes, largest parameter."""
    from herl_megatron.megatron.load_weights import init_random_weights
    from herl_megatron.megatron.model import build_model
    from herl_megatron.models.hf_config import read_architecture
    from herl_megatron.weight_sync.buckets import planned_tensors
    from herl_megatron.weight_sync.source import WeightSource

    config, groups = start(init_method, rank, world_size, **layout)
    architecture = read_architecture(folder)
    chunks = build_model(architecture, config, groups)
    init_random_weights(chunks, architecture, groups, seed=7)
    source = WeightSource(
        chunks, architecture, config, bucket_bytes=_BUCKET_BYTES, groups=groups, dtype=dtype
    )
    sent: dict[str, torch.Tensor] = {}
    memory = []
    for bucket in source.plan():
        live = LiveBytes()
        live.ignore(p for chunk in chunks for p in chunk.parameters())
        with live:
            tensors = source.gather(bucket.index)
        got = [] if tensors is None else [(n, str(t.dtype)[6:], tuple(t.shape)) for n, t in tensors]
        assert tensors is None or got == [(t.name, t.dtype, t.shape) for t in bucket.tensors]
        stream_dtype = dtype or torch.float32
        largest = max(
            sum(t.num_bytes for t in planned_tensors(p, stream_dtype)) for p in bucket.parameters
        )
        memory.append((bucket.num_bytes, live.peak, largest))
        sent |= {name: tensor.clone() for name, tensor in tensors or ()}
        del tensors
    return sent, memory


def _stream(folder: Path, dtype: torch.dtype | None = None, **layout: Any) -> Any:
    config = MegatronConfig(**layout)
    answers = run_ranks(stream_random_model, config.world_size, str(folder), layout, dtype)
    sent: dict[str, torch.Tensor] = {}
    for tensors, _ in answers:
        assert not sent.keys() & tensors.keys(), "a tensor was sent twice"
        sent |= tensors
    return sent, [memory for _, memory in answers]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    tiny_models.config("qwen3").save_pretrained(folder)
    return folder


def test_random_init_is_the_same_for_every_layout(qwen3: Path) -> None:
    single, _ = _stream(qwen3)
    split, _ = _stream(
        qwen3, tensor_parallel=2, pipeline_parallel=2, virtual_pipeline=2, sequence_parallel=True
    )
    assert single.keys() == split.keys()
    assert all(torch.equal(single[name], split[name]) for name in single)
    # As Hugging Face initialises: N(0, initializer_range = 0.05), norms 1.
    weight = single["model.layers.3.mlp.down_proj.weight"]  # 6144 numbers
    assert abs(float(weight.std()) - 0.05) < 0.002 and abs(float(weight.mean())) < 0.002
    assert (single["model.layers.0.self_attn.q_norm.weight"] == 1).all()
    other = single["model.layers.2.mlp.down_proj.weight"]
    assert not torch.equal(weight, other), "every tensor has its own numbers"


def test_norms_that_are_added_to_1_begin_at_0(tmp_path: Path) -> None:
    tiny_models.config("gemma3_text").save_pretrained(tmp_path)
    drawn, _ = _stream(tmp_path)
    norms = {name: tensor for name, tensor in drawn.items() if name.endswith("norm.weight")}
    assert len(norms) == 4 * 6 + 1 and not any(tensor.any() for tensor in norms.values())


def test_stream_in_bf16_rounds_once(qwen3: Path) -> None:
    exact, _ = _stream(qwen3)
    rounded, _ = _stream(qwen3, dtype=torch.bfloat16, tensor_parallel=2)
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)


def test_gather_needs_a_bucket_and_the_largest_parameter(qwen3: Path) -> None:
    _, memory = _stream(qwen3, tensor_parallel=2)
    padding_bytes = (768 - tiny_models.VOCAB) * 64 * 4  # vocabulary rows that only Megatron has
    for sender_bucket, other_bucket in zip(*memory, strict=True):
        num_bytes, peak, largest = sender_bucket
        assert num_bytes <= max(_BUCKET_BYTES, largest)
        assert peak <= num_bytes + largest + padding_bytes
        assert peak > num_bytes / 2, "gathering was not seen"  # norms are sent in place
        assert other_bucket[1] <= largest, "a rank that sends nothing gathered something"


def log_probs_over_tp(
    rank: int, world_size: int, init_method: str, vocab_size: int, padded: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, entropy and this rank's part of the gradient, whose sum is the whole.

    The output matrix is the identity: hidden states are the logits.
    """
    from herl_megatron.algos.log_probs import LogitBuffer, token_log_probs

    _, groups = start(init_method, rank, world_size, tensor_parallel=world_size)
    logits, targets, weights = log_probs_case(vocab_size, padded)
    hidden = logits.requires_grad_()
    log_probs, entropy = token_log_probs(
        hidden,
        torch.eye(padded).chunk(world_size)[rank],
        targets,
        vocab_size=vocab_size,
        tp_group=groups.tp.group,
        temperature=temperature,
        buffer=LogitBuffer(5),
    )
    assert entropy is not None
    (log_probs * weights[0] + entropy * weights[1]).sum().backward()
    assert hidden.grad is not None
    return log_probs.detach(), entropy.detach(), hidden.grad


def log_probs_case(vocab_size: int, padded: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits `[2, 9, padded]`, targets and weights for both outputs."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 9, padded, generator=generator) * 5
    targets = torch.randint(0, vocab_size, (2, 9), generator=generator)
    targets[0, 0], targets[0, 1] = 0, vocab_size - 1
    return logits, targets, torch.randn(2, 2, 9, generator=generator)


@pytest.mark.parametrize("vocab_size", [515, 300], ids=["both_ranks", "second_rank_all_padding"])
def test_log_probs_over_tp_equal_float64(vocab_size: int) -> None:
    padded, temperature = 768, 0.7
    logits, targets, weights = log_probs_case(vocab_size, padded)
    exact = logits.double().requires_grad_()
    log_p = torch.log_softmax(exact[..., :vocab_size] / temperature, dim=-1)
    want = log_p.gather(-1, targets[..., None])[..., 0]
    want_entropy = -(log_p.exp() * log_p).sum(-1)
    (want * weights[0] + want_entropy * weights[1]).sum().backward()
    answers = run_ranks(log_probs_over_tp, 2, vocab_size, padded, temperature)
    for log_probs, entropy, _ in answers:
        assert (log_probs - want).abs().max() < 1e-5
        assert (entropy - want_entropy).abs().max() < 1e-5
    grad = sum(grad for _, _, grad in answers)
    assert (grad - exact.grad).abs().max() < 1e-5


def hf_beside_megatron(rank: int, world_size: int, init_method: str, folder: str) -> torch.Tensor:
    """Logits of the HF model, loaded after the adapter was installed."""
    from transformers import AutoModelForCausalLM

    start(init_method, rank, world_size)
    with torch.device("meta"):
        assert torch.zeros(1).is_meta, "torch itself must stay as it is"
    assert torch.zeros(1).type() == "torch.FloatTensor"
    assert not torch.cuda.is_available()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder)
        logits: torch.Tensor = model(torch.arange(20)[None]).logits
    return logits


def test_adapter_leaves_hugging_face_alone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = tiny_models.save("llama_tied", tmp_path)
    with torch.no_grad():
        want = model(torch.arange(20)[None]).logits
    assert torch.equal(run_ranks(hf_beside_megatron, 1, str(tmp_path))[0], want)


def ask_for(rank: int, world_size: int, init_method: str, layout: dict[str, Any]) -> None:
    """Only try to start."""
    start(init_method, rank, world_size, **layout)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (dict(tensor_parallel=2), "TP 2 .* is 2 ranks but 1 were started"),
        (dict(sequence_parallel=True), "sequence_parallel needs"),
        (dict(virtual_pipeline=2), "virtual_pipeline needs"),
        (dict(expert_parallel=2), "ETP 1 [*] EP 2 does not divide the 1 ranks"),
        (dict(fp8="delayed"), "fp8 is 'delayed' but the device is the CPU"),
    ],
)
def test_impossible_layouts_are_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(RankError, match=f"ValueError: .*{message}"):
        run_ranks(ask_for, 1, layout)
