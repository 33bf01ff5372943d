"""Every family goes on at another layout with the optimizer's state that it was saved with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import load as load_plain
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.test_checkpoint import assert_same_bits, case_of
from tests.distributed.train_case import Case, hf_weights, shards_of, start_rank

pytestmark = pytest.mark.distributed

TP2_DP2 = dict(tensor_parallel=2, data_parallel=2, sequence_parallel=True)
TP2_PP2 = dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True)
PP2_DP2 = dict(pipeline_parallel=2, data_parallel=2)
DP4 = dict(data_parallel=4)
SAVED_AFTER, STEPS = 2, 4


@dataclass(frozen=True)
class Run:
    """Steps of a case at its layout: from the start, saved in the middle, or from a checkpoint,
    which is saved again, as it was loaded, elsewhere."""

    case: Case
    folder: str
    load: bool = False
    save_again: str = ""


def work(
    rank: int, world_size: int, init_method: str, runs: tuple[Run, ...]
) -> list[dict[str, Any]]:
    """All runs one after the other in the same processes."""
    from herl_megatron.megatron.checkpoint import load_checkpoint, save_checkpoint
    from herl_megatron.megatron.parallel import shutdown_parallel

    results = []
    for number, run in enumerate(runs):
        store = f"{init_method}{number}"
        megatron, groups, actor = start_rank(rank, world_size, store, run.case)
        shard = shards_of(run.case, megatron)[groups.dp.rank]
        if run.load:
            load_checkpoint(actor, run.folder, groups=groups)
        if run.save_again:
            save_checkpoint(actor, run.save_again, groups=groups)
        metrics = []
        for step in range(SAVED_AFTER if run.load else 0, STEPS):
            if step == SAVED_AFTER and not run.load:
                save_checkpoint(actor, run.folder, groups=groups)
            take = actor.sft_step if run.case.sft else actor.train_step
            metrics.append(take(shard))
        adam = [
            {key: value.clone() for key, value in state.items()}
            for chained in actor.optimizer.megatron.chained_optimizers
            for state in chained.optimizer.state.values()
        ]
        weights = hf_weights(actor, megatron, groups)
        results.append({"metrics": metrics, "weights": weights, "adam": adam, "drawn": None})
        shutdown_parallel()
    return results


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole, without the padding of the vocabulary."""
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in metadata.items()
        if isinstance(item, TensorStorageMetadata)
    }
    load_plain(state, storage_reader=FileSystemReader(folder), no_dist=True)
    vocab = ("word_embeddings.weight", "output_layer.weight")
    return {key: t[: tiny_models.VOCAB] if key.endswith(vocab) else t for key, t in state.items()}


def check(
    name: str, root: Path, before: dict[str, Any], after: dict[str, Any], precision: str
) -> None:
    """Saved at `before`: the same layout goes on bit for bit; `after` has the same state to the
    bit, and its losses and gradient norms are those of a run that never stopped.

    In bf16 two layouts round differently, fresh ones as well; the loss is the supervised one there,
    since of ratios near the clip's edge rounding would decide.
    """
    exact = precision == "fp32"
    case = replace(case_of(name, root / "hf"), sft=not exact)
    before, after = ({"precision": precision, **layout} for layout in (before, after))
    folder, again = root / "saved", root / "again"
    folder.mkdir()
    again.mkdir()
    first, second = case.on(**before), case.on(**after)
    runs = (
        Run(first, str(folder)),
        Run(first, str(folder), load=True),
        Run(second, str(folder), load=True, save_again=str(again)),
    )
    whole, same, other = zip(*run_ranks(work, 4, runs), strict=True)
    assert_same_bits(list(same), list(whole), skip=SAVED_AFTER)
    wanted, found = stored(folder), stored(again)
    assert wanted.keys() == found.keys()
    assert any(key.startswith("optimizer.state.exp_avg_sq.") for key in wanted)
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
    for key, tolerance in (("loss", 5e-3), ("grad_norm", 2e-2), ("lr", 1e-12)):
        got = [metrics[key] for metrics in other[-1]["metrics"]]
        want = [metrics[key] for metrics in whole[-1]["metrics"]][SAVED_AFTER:]
        assert got == pytest.approx(want, rel=min(tolerance, 1e-5) if exact else tolerance), key


@pytest.mark.parametrize(
    ("name", "before", "after", "precision"),
    [
        ("qwen2", TP2_DP2, PP2_DP2, "fp32"),
        ("qwen2_tied", TP2_PP2, DP4, "bf16"),
        ("qwen3_five", DP4, TP2_PP2, "fp32"),
        ("llama_tied", PP2_DP2, TP2_DP2, "bf16"),
        ("glm4", TP2_PP2, DP4, "bf16"),
        ("gemma3_text", PP2_DP2, TP2_DP2, "fp32"),
        ("mistral", TP2_PP2, PP2_DP2, "fp32"),
        ("qwen3_moe", TP2_DP2 | dict(expert_parallel=4, expert_tensor_parallel=1),
         PP2_DP2 | dict(expert_tensor_parallel=2), "fp32"),
        ("qwen3_moe", DP4 | dict(expert_parallel=2),
         TP2_DP2 | dict(expert_tensor_parallel=1), "bf16"),
    ],
    ids=str,
)  # fmt: skip
def test_another_layout_has_the_same_state(
    name: str, before: dict[str, Any], after: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    check(name, tmp_path, before, after, precision)
