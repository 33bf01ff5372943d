"""The reference in host memory: the numbers of a resident one bit for bit, with one model fewer."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herl_megatron.config.schema import AlgorithmConfig
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.train_case import (
    Case,
    hf_log_probs,
    make_rows,
    run_case,
    start_rank,
    with_log_probs,
)

pytestmark = pytest.mark.distributed

NAME = "qwen2_tied"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(NAME)
    model = tiny_models.save(NAME, Path(folder))
    rows, old, ref = with_log_probs(model, make_rows(10, vocab=tiny_models.VOCAB, seed=6), seed=7)
    wanted = ("weights", "log_probs", "ref_log_probs")
    algorithm = AlgorithmConfig(kl_coef=0.1)
    return Case(str(folder), rows, old, ref, algorithm=algorithm, steps=2, wanted=wanted)


@pytest.mark.parametrize(
    "layout",
    [
        dict(precision="bf16", data_parallel=2),
        dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True),
    ],
    ids=str,
)
def test_host_is_resident_bit_for_bit(case: Case, layout: dict[str, Any]) -> None:
    """After two steps both give the log-probs of the weights that the run started from."""
    host = run_case(case.on(reference="host", **layout))
    resident = run_case(case.on(reference="resident", **layout))
    assert host.metrics == resident.metrics
    for name, weight in resident.weights.items():
        assert torch.equal(host.weights[name], weight), name
    for left, right in zip(host.ref_log_probs, resident.ref_log_probs, strict=True):
        np.testing.assert_array_equal(left, right)
    # The first log-probs were of those weights too, on the same code path.
    for left, right in zip(host.ref_log_probs, host.log_probs, strict=True):
        np.testing.assert_array_equal(left, right)
    if "precision" not in layout:
        model = tiny_models.build(NAME)
        for row, found in zip(case.rows, host.ref_log_probs, strict=True):
            if found is not None:
                expected = hf_log_probs(model, row)[0].detach().numpy()
                np.testing.assert_allclose(found, expected, atol=2e-5)


def count_models(rank: int, world_size: int, init_method: str, case: Case) -> tuple[int, int, int]:
    """Bytes of parameters in modules, in the tensors of the reference on the host, of a model."""
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    model = sum(p.nbytes for chunk in actor.chunks for p in chunk.parameters())
    gc.collect()
    held = {id(o): o.nbytes for o in gc.get_objects() if type(o) is torch.nn.Parameter}
    weights = getattr(actor._reference, "_weights", None)
    host = sum(tensor.nbytes for tensor in weights._host) if weights is not None else 0
    shutdown_parallel()
    return sum(held.values()), host, model


def test_one_model_on_the_device(case: Case) -> None:
    def count(where: str) -> tuple[int, int, int]:
        layout = dict(reference=where, distributed_optimizer=False)
        bytes_on_device, on_host, models = run_ranks(count_models, 1, replace(case, layout=layout))[
            0
        ]
        return bytes_on_device, on_host, models

    modules, host, model = count("host")
    assert (modules, host) == (model, model)
    modules, host, model = count("resident")
    assert (modules, host) == (2 * model, 0)
