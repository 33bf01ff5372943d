"""Training that is saved and resumed equals training that was not interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from herl_megatron.config.schema import OptimizerConfig
from herl_megatron.files.manifest import describe_files
from tests.distributed import tiny_models
from tests.distributed.harness import RankError, run_ranks
from tests.distributed.train_case import (
    Case,
    build_actor,
    hf_weights,
    make_rows,
    megatron_config,
    shards_of,
    start_rank,
    with_log_probs,
)

pytestmark = pytest.mark.distributed

NAME = "qwen2_tied"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(NAME, tmp_path_factory.mktemp(NAME))


def case_of(name: str, folder: Path) -> Case:
    """Rows with log-probs for a tiny model, whose folder it writes."""
    torch.set_num_threads(1)
    model = tiny_models.save(name, folder)
    rows, old, ref = with_log_probs(model, make_rows(8, vocab=tiny_models.VOCAB, seed=4), seed=5)
    optimizer = OptimizerConfig(
        lr=2e-3, warmup_steps=3, schedule="cosine", eps=1e-4, weight_decay=0.5, beta1=0.8
    )
    return Case(str(folder), rows, old, ref, optimizer=optimizer)


def steps(
    rank: int,
    world_size: int,
    init_method: str,
    case: Case,
    save_after: int | None,
    load_from: str | None,
    folder: str,
    background: bool,
) -> dict[str, Any]:
    """One rank: perhaps load, do `case.steps` steps, save after some of them, perhaps in the
    background and finished only at the end.

    `weights_loaded` are taken right after loading, `weights` at the end, with Adam's moments and
    a number drawn from each generator.
    """
    import random

    import numpy as np

    from herl_megatron.megatron.checkpoint import begin_save, load_checkpoint, save_checkpoint
    from herl_megatron.megatron.parallel import shutdown_parallel
    from herl_megatron.megatron.staging import StagingMemory

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    shard = shards_of(case, megatron)[groups.dp.rank]
    if load_from is not None:
        load_checkpoint(actor, load_from, groups=groups)
    result: dict[str, Any] = {"weights_loaded": hf_weights(actor, megatron, groups)}
    metrics = []
    write = None
    for step in range(case.steps + 1):
        if step == save_after and background:
            write = begin_save(actor, folder, groups=groups, staging=StagingMemory())
        elif step == save_after:
            save_checkpoint(actor, folder, groups=groups)
        if step < case.steps:
            metrics.append(actor.train_step(shard))
            random.random(), np.random.rand(), torch.rand(1)
    if write is not None:  # the weights have changed since
        written = write.finish()
        mine = {n: f for n, f in describe_files(Path(folder)).items() if n.startswith(f"__{rank}_")}
        assert written == mine and mine, "hashed while writing, and read back"
    result |= {
        "metrics": metrics,
        "weights": hf_weights(actor, megatron, groups),
        "adam": [
            {key: value.clone() for key, value in state.items()}
            for chained in actor.optimizer.megatron.chained_optimizers
            for state in chained.optimizer.state.values()
        ],
        "drawn": [random.random(), float(np.random.rand()), float(torch.rand(1))],
    }
    shutdown_parallel()
    return result


def run(
    case: Case,
    *,
    count: int,
    folder: Path,
    save_after: int | None = None,
    load: bool = False,
    background: bool = False,
) -> list[dict[str, Any]]:
    """All ranks' results; `folder` holds the checkpoint."""
    folder.mkdir(exist_ok=True)
    source = str(folder) if load else None
    world_size = megatron_config(case).world_size
    case = replace(case, steps=count)
    return run_ranks(steps, world_size, case, save_after, source, str(folder), background)


def merged(results: list[dict[str, Any]], key: str) -> dict[str, torch.Tensor]:
    return {name: tensor for result in results for name, tensor in result[key].items()}


def assert_same_bits(resumed: list[dict[str, Any]], whole: list[dict[str, Any]], skip: int) -> None:
    """Metrics, weights, Adam's state and generators of every rank."""
    for got, want in zip(resumed, whole, strict=True):
        assert got["metrics"] == want["metrics"][skip:]
        assert got["drawn"] == want["drawn"]
        assert got["weights"].keys() == want["weights"].keys()
        for name, tensor in want["weights"].items():
            assert torch.equal(got["weights"][name], tensor), name
        assert len(got["adam"]) == len(want["adam"]) > 0
        for mine, theirs in zip(got["adam"], want["adam"], strict=True):
            assert set(mine) == set(theirs) == {"step", "exp_avg", "exp_avg_sq"}
            for key, tensor in theirs.items():
                assert torch.equal(mine[key], tensor), key


@pytest.mark.parametrize(
    "layout",
    [
        dict(tensor_parallel=2),
        dict(pipeline_parallel=2),
        dict(data_parallel=2),
        dict(data_parallel=2, distributed_optimizer=False),
        dict(data_parallel=2, precision="bf16"),
        dict(data_parallel=2, precision="bf16", distributed_optimizer=False),
    ],
    ids=str,
)
def test_same_layout_continues_bit_for_bit(
    case: Case, tmp_path: Path, layout: dict[str, Any]
) -> None:
    """Four steps at once against two, a checkpoint, and two in new processes; with the distributed
    optimizer the checkpoint is written while the third and fourth step change what it holds."""
    here = case.on(**layout)
    background = layout.get("distributed_optimizer", True)
    whole = run(here, count=4, folder=tmp_path / "c", save_after=2, background=background)
    assert_same_bits(run(here, count=2, folder=tmp_path / "c", load=True), whole, skip=2)


def test_before_the_first_optimizer_step(case: Case, tmp_path: Path) -> None:
    """A run whose first steps had nothing to learn from has no Adam state yet."""
    for layout in (dict(data_parallel=2), dict(distributed_optimizer=False)):
        here, folder = case.on(**layout), tmp_path / str(layout)
        whole = run(here, count=2, folder=folder, save_after=0)
        assert_same_bits(run(here, count=2, folder=folder, load=True), whole, skip=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (dict(tensor_parallel=2), dict(pipeline_parallel=2, virtual_pipeline=2)),
        (dict(pipeline_parallel=2), dict(data_parallel=2)),
        (dict(data_parallel=2), dict()),
        (dict(context_parallel=2), dict(pipeline_parallel=2)),
        (dict(pipeline_parallel=2, distributed_optimizer=False),
         dict(tensor_parallel=2, distributed_optimizer=False)),
    ],
    ids=str,
)  # fmt: skip
def test_another_layout_continues(
    case: Case, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The weights arrive exactly; further fp32 steps agree to 1e-5, as layouts do among each other.

    Without Adam's moments the third step would differ by far more: its direction would be the
    gradient's alone, and its learning rate that of the warm-up's first step. All other families are
    in `test_checkpoint_layouts`.
    """
    saved = run(case.on(**before), count=2, folder=tmp_path / "c", save_after=2)
    whole = run(case.on(**after), count=4, folder=tmp_path / "unused")
    resumed = run(case.on(**after), count=2, folder=tmp_path / "c", load=True)
    want, got = merged(saved, "weights"), merged(resumed, "weights_loaded")
    assert want.keys() == got.keys()
    for weight, tensor in want.items():
        assert torch.equal(got[weight], tensor), weight
    for key in ("loss", "grad_norm", "lr"):
        numbers = [
            [m[key] for m in result["metrics"] if key in m][-2:]
            for result in (resumed[-1], whole[-1])
        ]
        assert len(numbers[0]) == 2
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5), key
    files = Path(case.folder).glob("*.safetensors")
    start = {name: tensor for file in files for name, tensor in load_file(file).items()}
    final = merged(resumed, "weights")
    for weight, tensor in merged(whole, "weights").items():
        moved = (tensor - start[weight]).norm()
        assert (final[weight] - tensor).norm() / moved < 2e-4, weight


def test_the_other_kind_of_optimizer_is_refused(case: Case, tmp_path: Path) -> None:
    run(case.on(distributed_optimizer=False), count=1, folder=tmp_path, save_after=1)
    with pytest.raises(RankError, match="distributed_optimizer False and this run has True; set"):
        run(case, count=1, folder=tmp_path, load=True)


def failing_save(
    rank: int, world_size: int, init_method: str, case: Case, folder: str
) -> dict[str, Any]:
    """One rank; rank 1 may write no file larger than 50 kB."""
    import resource
    import signal

    from herl_megatron.device import choose_device
    from herl_megatron.megatron.checkpoint import begin_save
    from herl_megatron.megatron.parallel import init_parallel
    from herl_megatron.megatron.staging import StagingMemory

    megatron = megatron_config(case)
    groups = init_parallel(
        megatron, rank=rank, world_size=world_size, init_method=init_method,
        device=choose_device("cpu"), seed=0,
    )  # fmt: skip
    actor = build_actor(case, megatron, groups)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    write = begin_save(actor, folder, groups=groups, staging=StagingMemory())
    write.wait()
    result: dict[str, Any] = {"done": "", "finish": ""}
    try:
        result["done"] = write.done()
    except OSError as error:
        result["done"] = str(error)
    try:
        write.finish()
    except OSError as error:
        result["finish"] = str(error)
    return result


def test_a_rank_that_cannot_write_is_heard_of(case: Case, tmp_path: Path) -> None:
    """It says why, finishing fails on all ranks, and the checkpoint stays without its index."""
    folder = tmp_path / "c"
    folder.mkdir()
    first, second = run_ranks(failing_save, 2, case.on(tensor_parallel=2), str(folder))
    assert first["done"] is True and "File too large" in second["done"]
    assert "a rank could not write" in first["finish"] and "too large" in first["finish"]
    assert second["finish"] == second["done"]
    assert not (folder / ".metadata").exists() and not (folder / "metadata.json").exists()
