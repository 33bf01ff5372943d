"""A Hugging Face model cut by TP, PP, VPP and SP: same logits, and back to the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.hf_folder import finish_export, start_export
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks

pytestmark = pytest.mark.distributed

ROWS = ((11, 3, 16), (7, 16, 2))
"""Two micro-batches (the pipeline needs them), with the lengths of their rows."""
MODELS = ("qwen2", "qwen2_tied", "qwen3", "llama_tied")
ROPES = ("llama_linear", "qwen3_yarn", "glm4_yarn")
LAYOUTS = {
    "single": dict(),
    "tp2": dict(tensor_parallel=2),
    "tp2_sp": dict(tensor_parallel=2, sequence_parallel=True),
    "pp2": dict(pipeline_parallel=2),
    "pp2_vpp2": dict(pipeline_parallel=2, virtual_pipeline=2),
    "tp2_pp2_sp": dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True),
}
_LOGITS_TOLERANCE = 5e-5
_BUCKET_BYTES = 60_000


@dataclass(frozen=True)
class Answer:
    """What one rank tells about one model."""

    padded: list[torch.Tensor]
    """Per micro-batch, this rank's vocabulary columns `[batch, seq, padded_vocab / tp]`."""
    packed: list[torch.Tensor]
    tp_rank: int
    holds_output: bool
    written: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tiny models, and their logits row by row."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    for name in (*MODELS, "mistral", "qwen3_moe_1e6", "qwen3_five", "glm4", "gemma3_text", *ROPES):
        model = tiny_models.save(name, root / name)
        with torch.no_grad():
            logits = [[model(input_ids=row[None]).logits[0] for row in rows] for rows in batches()]
        torch.save(logits, root / f"{name}.pt")
    return root


def batches() -> list[list[torch.Tensor]]:
    """Token ids of every row, `[length]` each."""
    generator = torch.Generator().manual_seed(5)
    return [
        [torch.randint(0, tiny_models.VOCAB, (length,), generator=generator) for length in lengths]
        for lengths in ROWS
    ]


def work(
    rank: int,
    world_size: int,
    init_method: str,
    layout: dict[str, Any],
    models: tuple[tuple[str, str], ...],
) -> list[Answer]:
    """Load each model, compute both kinds of batch, and write the export's shards."""
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.load_weights import load_hf_weights
    from herl_megatron.megatron.model import build_model
    from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel
    from herl_megatron.models.hf_config import read_architecture
    from herl_megatron.weight_sync.export import write_stage
    from herl_megatron.weight_sync.source import WeightSource

    config = MegatronConfig(**{"precision": "fp32", "timeout_s": 60, **layout})
    groups = init_parallel(
        config,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device=choose_device("cpu"),
        seed=0,
    )
    answers = []
    for model_folder, staging in models:
        architecture = read_architecture(model_folder)
        chunks = build_model(architecture, config, groups)
        load_hf_weights(chunks, model_folder, architecture, groups)
        source = WeightSource(
            chunks, architecture, config, bucket_bytes=_BUCKET_BYTES, groups=groups
        )
        answers.append(
            Answer(
                padded=pipeline_logits(chunks, packed=False),
                packed=pipeline_logits(chunks, packed=True),
                tp_rank=groups.tp.rank,
                holds_output=groups.holds_output,
                written=write_stage(source, staging) if source.takes_part else None,
            )
        )
    shutdown_parallel()
    return answers


def pipeline_logits(chunks: list[torch.nn.Module], *, packed: bool) -> list[torch.Tensor]:
    """Logits of all micro-batches by Megatron's own schedule; empty before the last stage."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from herl_megatron.megatron.model import packed_sequence_params

    def forward_step(batch_iterator: Any, chunk: Any) -> Any:
        rows = next(batch_iterator)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        if packed:
            ids = torch.cat(rows)[None]
            # Sequence parallelism wants an even total; the padding is a row of its own.
            ids = torch.nn.functional.pad(ids, (0, ids.shape[1] % 2))
            ends = torch.cat([lengths, ids.new_tensor([ids.shape[1] - int(lengths.sum())])])
            cu_seqlens = torch.nn.functional.pad(ends[ends > 0].cumsum(0), (1, 0)).int()
            parameters = packed_sequence_params(cu_seqlens)
        else:
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9)
            parameters = None
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        out = chunk(
            input_ids=ids,
            position_ids=positions,
            attention_mask=None,
            packed_seq_params=parameters,
        )
        return out, lambda logits, non_loss_data: logits

    with torch.no_grad():
        collected: list[torch.Tensor] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches()) for _ in chunks],
            model=chunks,
            num_microbatches=len(ROWS),
            seq_length=max(map(max, ROWS)),
            micro_batch_size=len(ROWS[0]),
            forward_only=True,
            collect_non_loss_data=True,
        )
    return collected


def whole_vocab(answers: list[Answer], kind: str, micro_batch: int) -> torch.Tensor:
    """Logits of the last stage's ranks side by side, vocabulary padding dropped."""
    last = {a.tp_rank: a for a in answers if a.holds_output}  # DP ranks answer the same
    columns = [getattr(last[rank], kind)[micro_batch] for rank in sorted(last)]
    return torch.cat(columns, dim=-1)[..., : tiny_models.VOCAB]


def check_logits(answers: list[Answer], reference: list[list[torch.Tensor]]) -> float:
    """Worst difference to HF over all real tokens, padded and packed."""
    worst = 0.0
    for index, rows in enumerate(reference):
        padded = whole_vocab(answers, "padded", index)
        packed = whole_vocab(answers, "packed", index)[0]
        start = 0
        for row, want in enumerate(rows):
            got = (padded[row, : len(want)], packed[start : start + len(want)])
            worst = max(worst, *(float((g - want).abs().max()) for g in got))
            start += len(want)
    return worst


def check_export(folder: Path, exported: Path) -> None:
    """Same names and the same bits as the folder that was loaded."""
    want = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(want)
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in want.values())
    for name, tensor in want.items():
        got = load_file(exported / index["weight_map"][name])[name]
        assert got.dtype == tensor.dtype and torch.equal(got, tensor), name


def run_layout(folder: Path, tmp_path: Path, models: tuple[str, ...], **layout: Any) -> None:
    """Load, compute and export `models` in one layout and compare with HF."""
    config = MegatronConfig(**layout)
    staged = {name: start_export(tmp_path / name) for name in models}
    pairs = tuple((str(folder / name), str(staging)) for name, staging in staged.items())
    by_rank = run_ranks(work, config.world_size, layout, pairs)
    for position, name in enumerate(models):
        answers = [answers[position] for answers in by_rank]
        difference = check_logits(answers, torch.load(folder / f"{name}.pt"))
        assert difference < _LOGITS_TOLERANCE, f"{name}: {difference}"
        written = [answer.written for answer in answers if answer.written is not None]
        assert len(written) == config.pipeline_parallel
        finish_export(staged[name], tmp_path / name, stages=written, source=folder / name)
        check_export(folder / name, tmp_path / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_round_trip(layout: str, folder: Path, tmp_path: Path) -> None:
    run_layout(folder, tmp_path, MODELS, **LAYOUTS[layout])


def test_sliding_window_and_experts(folder: Path, tmp_path: Path) -> None:
    run_layout(folder, tmp_path / "single", ("mistral", "qwen3_moe_1e6"))
    run_layout(folder, tmp_path / "ep2", ("qwen3_moe_1e6",), expert_parallel=2, data_parallel=2)


@pytest.mark.parametrize(
    "layout",
    [
        dict(),
        dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True),
        dict(tensor_parallel=4),
    ],
    ids=str,
)
def test_output_norms_and_partial_rotation(
    layout: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run_layout(folder, tmp_path, ("glm4",), **layout)


@pytest.mark.parametrize(
    "layout",
    [
        dict(),
        dict(tensor_parallel=2, sequence_parallel=True),
        dict(pipeline_parallel=2, virtual_pipeline=2),
        dict(tensor_parallel=2, pipeline_parallel=3),
    ],
    ids=str,
)
def test_windows_and_rotations_by_layer(
    layout: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run_layout(folder, tmp_path, ("gemma3_text",), **layout)


def test_scaled_rotary_embeddings(folder: Path, tmp_path: Path) -> None:
    run_layout(folder, tmp_path / "single", ROPES)
    run_layout(folder, tmp_path / "tp2", ROPES[1:], tensor_parallel=2, sequence_parallel=True)


def test_stages_of_unequal_size(folder: Path, tmp_path: Path) -> None:
    run_layout(folder, tmp_path / "pp3", ("qwen2_tied", "qwen3_moe_1e6"), pipeline_parallel=3)
    interleaved = dict(pipeline_parallel=2, virtual_pipeline=2)
    run_layout(folder, tmp_path / "vpp2", ("qwen3_five",), **interleaved)


@pytest.mark.parametrize(
    "layout",
    [
        dict(tensor_parallel=2, expert_tensor_parallel=1, expert_parallel=2),
        dict(data_parallel=2, expert_tensor_parallel=2, pipeline_parallel=2),
        dict(tensor_parallel=2, data_parallel=2, expert_tensor_parallel=1, expert_parallel=4),
        dict(tensor_parallel=2, data_parallel=2, expert_tensor_parallel=4),
    ],
    ids=str,
)
def test_experts_cut_otherwise_than_the_rest(
    layout: dict[str, int], folder: Path, tmp_path: Path
) -> None:
    sequence = "tensor_parallel" in layout
    run_layout(folder, tmp_path, ("qwen3_moe_1e6",), sequence_parallel=sequence, **layout)


def test_more_tp_ranks_than_key_value_heads(folder: Path, tmp_path: Path) -> None:
    run_layout(folder, tmp_path, ("qwen2",), tensor_parallel=4)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_bf16_is_as_exact_as_hugging_face_in_bf16(name: str, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    layout = {"tensor_parallel": 2, "precision": "bf16"}
    staging = start_export(tmp_path / "bf16")
    by_rank = run_ranks(work, 2, layout, ((str(folder / name), str(staging)),))
    answers = [answers[0] for answers in by_rank]
    hf = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.bfloat16).eval()
    ours, theirs = [], []
    for index, wanted in enumerate(torch.load(folder / f"{name}.pt")):
        padded = whole_vocab(answers, "padded", index)
        assert padded.dtype is torch.bfloat16
        for row, want in enumerate(wanted):
            with torch.no_grad():
                logits = hf(input_ids=batches()[index][row][None]).logits[0]
            ours.append(padded[row, : len(want)].float() - want)
            theirs.append(logits.float() - want)
    error, hf_error = (float(torch.cat(parts).square().mean().sqrt()) for parts in (ours, theirs))
    assert 0 < error < 1.2 * hf_error, f"rms error {error}, Hugging Face has {hf_error}"
    finish_export(staging, tmp_path / "bf16", stages=[answers[0].written], source=folder / name)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16").state_dict()
    assert all(torch.equal(exported[key], value) for key, value in hf.state_dict().items())


def test_exported_folder_loads_in_transformers(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    name = "llama_tied"
    staging = start_export(tmp_path / "policy")
    run = partial(run_ranks, work, 1, {}, ((str(folder / name), str(staging)),))
    (answer,) = run()[0]
    finish_export(staging, tmp_path / "policy", stages=[answer.written], source=folder / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    assert model.dtype is torch.float32
    for rows, wanted in zip(batches(), torch.load(folder / f"{name}.pt"), strict=True):
        for row, want in zip(rows, wanted, strict=True):
            with torch.no_grad():
                assert torch.equal(model(input_ids=row[None]).logits[0], want)
