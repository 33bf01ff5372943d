"""One optimizer step on every layout equals the same step in plain PyTorch with the HF model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herl_megatron.config.reference_compat import effective
from herl_megatron.config.schema import (
    AlgorithmConfig,
    HindsightConfig,
    OptimizerConfig,
    RolloutConfig,
)
from tests.distributed import tiny_models
from tests.distributed.train_case import (
    LAYOUTS,
    Case,
    hf_log_probs,
    make_rows,
    plain_steps,
    run_case,
    with_log_probs,
)

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-5
MODELS = ("qwen2_tied", "qwen3", "qwen3_five", "mistral", "qwen3_moe", "glm4", "gemma3_text")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The same rows for each tiny model."""
    torch.set_num_threads(1)
    made = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        model = tiny_models.save(name, Path(folder))
        rows = make_rows(16, vocab=tiny_models.VOCAB, seed=1)
        rows, old, ref = with_log_probs(model, rows, seed=2)
        made[name] = Case(str(folder), rows, old, ref, wanted=("log_probs",))
    return made


@cache
def plain(name: str, key: Case) -> tuple[float, float]:
    """Loss and gradient norm of one step in plain PyTorch (computed once per distinct case)."""
    losses, norms, _ = plain_steps(tiny_models.build(name), key)
    return losses[0], norms[0]


def check(name: str, case: Case, key: Case | None = None) -> dict[str, float]:
    """Run the case, compare loss and gradient norm with plain PyTorch, return the metrics."""
    (metrics,) = run_case(case).metrics
    loss, norm = plain(name, key or case)
    assert metrics["loss"] == pytest.approx(loss, rel=TOLERANCE)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=TOLERANCE)
    parts = [value for key, value in metrics.items() if key.startswith("loss_")]
    assert sum(parts) == pytest.approx(metrics["loss"], rel=1e-6) or case.sft
    return metrics


@pytest.mark.parametrize(
    ("name", "layout"),
    [("qwen2_tied", layout) for layout in LAYOUTS]
    + [("qwen3", layout) for layout in ("TP1 PP1 DP1", "TP2 SP", "PP2 VPP2", "TP2 PP2 SP")]
    + [("qwen3_five", "PP2 VPP2"), ("glm4", "TP2 PP2 SP"), ("gemma3_text", "TP2 PP2 SP")],
)
def test_loss_gradient_and_log_probs(cases: dict[str, Case], name: str, layout: str) -> None:
    check_with_log_probs(name, cases[name], LAYOUTS[layout])


def check_with_log_probs(name: str, case: Case, layout: dict[str, Any]) -> None:
    """Loss, gradient norm and every row's log-probs against plain PyTorch."""
    answer = run_case(case.on(**layout))
    loss, norm = plain(name, case)
    assert answer.metrics[0]["loss"] == pytest.approx(loss, rel=TOLERANCE)
    assert answer.metrics[0]["grad_norm"] == pytest.approx(norm, rel=TOLERANCE)
    model = tiny_models.build(name)
    for row, got in zip(case.rows, answer.log_probs, strict=True):
        if row.weight == 0:
            assert got is None
        else:
            want = hf_log_probs(model, row)[0].detach().numpy()
            np.testing.assert_allclose(got, want, atol=2e-5)


CP2 = dict(context_parallel=2)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("qwen2_tied", CP2 | dict(packing=True, tensor_parallel=2, sequence_parallel=True)),
        ("qwen2_tied", CP2 | dict(packing=True, pipeline_parallel=2, virtual_pipeline=2)),
        ("qwen2_tied", CP2 | dict(packing=True, data_parallel=2, distributed_optimizer=False)),
        ("qwen2_tied", CP2 | dict(packing=True, recompute="selective")),
        # Micro-batches of one row: most have no response token on one of the ranks.
        ("qwen2_tied", CP2 | dict(tensor_parallel=2, micro_batch_tokens=1)),
        ("mistral", dict(context_parallel=4)),
        ("mistral", CP2 | dict(packing=True)),
        ("qwen3_moe", CP2 | dict(packing=True, expert_parallel=2)),
        ("glm4", CP2 | dict(packing=True)),
        ("gemma3_text", CP2 | dict(packing=True, recompute="full")),
    ],
    ids=str,
)
def test_context_parallel(cases: dict[str, Case], name: str, layout: dict[str, Any]) -> None:
    """Packed rows, a sliding window (5 tokens: chunks both shorter and longer), experts."""
    check_with_log_probs(name, cases[name], layout)


@pytest.mark.parametrize("packing", [False, True])
def test_context_parallel_reports_the_same_numbers(cases: dict[str, Case], packing: bool) -> None:
    """Counts, sums, means and maxima of the whole batch, none doubled, with every term on."""
    case = replace(
        cases["qwen2_tied"],
        wanted=(),
        algorithm=AlgorithmConfig(
            kl_coef=0.2, entropy_coef=0.05, aggregation="sequence_mean", mismatch_weight=True
        ),
    )
    one = check("qwen2_tied", case.on(packing=packing), key=case)
    two = check("qwen2_tied", case.on(packing=packing, **CP2), key=case)
    for name in set(one) - {"padding_ratio", "micro_batches"}:
        assert two[name] == pytest.approx(one[name], rel=TOLERANCE), name
    assert one["padding_ratio"] < two["padding_ratio"] < 1.2


@pytest.mark.parametrize(
    "layout",
    [
        dict(micro_batch_tokens=1 << 20),
        dict(micro_batch_tokens=1),
        dict(packing=True),
        dict(packing=True, micro_batch_tokens=1 << 20),
        dict(packing=True, tensor_parallel=2, sequence_parallel=True, data_parallel=2),
        dict(packing=True, pipeline_parallel=2, virtual_pipeline=2),
        dict(recompute="selective"),
        dict(recompute="full", pipeline_parallel=2),
        dict(distributed_optimizer=False, data_parallel=2),
    ],
    ids=str,
)
def test_batching_and_memory_options(cases: dict[str, Case], layout: dict[str, Any]) -> None:
    case = cases["qwen2_tied"]
    metrics = check("qwen2_tied", case.on(**layout), key=case)
    if layout.get("packing"):
        assert metrics["padding_ratio"] <= 1.0 + 1 / 20
    if layout == dict(micro_batch_tokens=1):
        assert metrics["micro_batches"] == metrics["rows"]


@pytest.mark.parametrize("layout", ["TP1 PP1 DP1", "PP2 VPP2", "TP2 DP2 SP", "CP2 DP2"])
def test_fewer_rows_than_micro_batches(cases: dict[str, Case], layout: str) -> None:
    """Ranks and stages without a row compute a dummy, which changes nothing."""
    full = cases["qwen2_tied"]
    assert full.old_log_probs is not None
    one = replace(
        full,
        rows=full.rows[:1],
        old_log_probs=full.old_log_probs[:1],
        ref_log_probs=None,
        wanted=(),
    )
    metrics = check("qwen2_tied", one.on(**LAYOUTS[layout]), key=one)
    assert metrics["rows"] == 1
    assert metrics["sampled_tokens"] == metrics["tokens"] == len(full.rows[0].response_token_ids)
    assert metrics["revision_tokens"] == 0.0 and "revision_ratio_mean" not in metrics


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("behavior", ["sampler", "old", "one"])
def test_every_aggregation_and_behavior(
    cases: dict[str, Case], aggregation: str, behavior: str
) -> None:
    case = replace(
        cases["qwen2_tied"],
        algorithm=AlgorithmConfig.model_validate({"aggregation": aggregation, "clip_high": 0.28}),
        hindsight=HindsightConfig.model_validate({"behavior": behavior, "gamma": 0.3}),
    )
    check("qwen2_tied", case)


def test_kl_and_entropy(cases: dict[str, Case]) -> None:
    case = replace(
        cases["qwen2_tied"],
        algorithm=AlgorithmConfig(kl_coef=0.2, entropy_coef=0.05, aggregation="sequence_mean"),
    )
    metrics = check("qwen2_tied", case.on(tensor_parallel=2, data_parallel=2), key=case)
    assert metrics["loss_kl"] == pytest.approx(0.2 * metrics["kl"])
    assert metrics["kl"] > 0.01


def test_token_mean_of_blocks(cases: dict[str, Case]) -> None:
    """14 rows with weight in blocks of 5, 5 and 4, whose rows lie on several ranks and in several
    micro-batches; reference log-probs and entropy have the same weights."""
    algorithm = AlgorithmConfig(
        kl_coef=0.2, entropy_coef=0.05, aggregation="block_token_mean", block_rows=5
    )
    case = replace(cases["qwen2_tied"], algorithm=algorithm)
    metrics = check("qwen2_tied", case.on(**LAYOUTS["CP2 DP2"]), key=case)
    assert (metrics["rows"], metrics["micro_batches"] > 1) == (14, True)
    token_mean = algorithm.model_copy(update={"aggregation": "token_mean", "block_rows": None})
    other, _ = plain("qwen2_tied", replace(case, algorithm=token_mean))
    assert metrics["loss"] != pytest.approx(other, rel=0.05)


def test_mismatch_weight(cases: dict[str, Case]) -> None:
    """On-policy tokens are weighted; the statistics are of all of them, over ranks and batches."""
    algorithm = AlgorithmConfig(mismatch_weight=True, mismatch_cap=1.2)
    case = replace(cases["qwen2_tied"], algorithm=algorithm)
    metrics = check("qwen2_tied", case.on(tensor_parallel=2, data_parallel=2), key=case)
    assert case.old_log_probs is not None
    log_ratio = np.concatenate(
        [
            old.astype(np.float64) - row.rollout_log_probs
            for row, old in zip(case.rows, case.old_log_probs, strict=True)
            if row.weight > 0 and not row.off_policy
        ]
    )
    ratio = np.exp(log_ratio)
    assert metrics["mismatch_mean"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert metrics["mismatch_max"] == pytest.approx(ratio.max(), rel=1e-5)
    assert metrics["mismatch_truncated"] == pytest.approx((ratio > 1.2).mean(), rel=1e-5)
    assert metrics["mismatch_kl"] == pytest.approx((ratio - 1 - log_ratio).mean(), rel=1e-4)
    assert 0.1 < metrics["mismatch_truncated"] < 0.9


@pytest.mark.parametrize("layout", [dict(), dict(tensor_parallel=2, pipeline_parallel=2)], ids=str)
def test_temperature(cases: dict[str, Case], layout: dict[str, Any]) -> None:
    """Loss, entropy and log-probs are of softmax(logits / temperature); SFT's are not, and the
    plain log-probs are there for the asking."""
    algorithm = AlgorithmConfig(kl_coef=0.2, entropy_coef=0.05)
    case = replace(cases["qwen2_tied"], temperature=0.6, algorithm=algorithm)
    case = replace(case, wanted=("log_probs", "ref_log_probs"), optimizer=OptimizerConfig())
    check("qwen2_tied", case.on(**layout), key=case)
    model = tiny_models.build("qwen2_tied")
    answer = run_case(case.on(**layout))
    plain_answer = run_case(replace(case, log_prob_temperature=1.0).on(**layout))
    for number, row in enumerate(case.rows):
        if row.weight:
            policy, plain_ = (hf_log_probs(model, row, t)[0].detach().numpy() for t in (0.6, 1.0))
            np.testing.assert_allclose(answer.log_probs[number], policy, atol=3e-5)
            np.testing.assert_allclose(answer.ref_log_probs[number], policy, atol=3e-5)
            np.testing.assert_allclose(plain_answer.log_probs[number], plain_, atol=2e-5)
    fitted = replace(case, sft=True, wanted=())
    check("qwen2_tied", fitted.on(**layout), key=fitted)


def test_reference_compat(cases: dict[str, Case]) -> None:
    """The released behaviour's denominator: `behavior: old`."""
    base = cases["qwen2_tied"]
    compat = replace(
        base, hindsight=effective(HindsightConfig(reference_compat=True), RolloutConfig())
    )
    check("qwen2_tied", compat, key=replace(base, hindsight=HindsightConfig(behavior="old")))


def test_sft(cases: dict[str, Case]) -> None:
    case = replace(cases["qwen2_tied"], sft=True)
    metrics = check("qwen2_tied", case.on(tensor_parallel=2, data_parallel=2), key=case)
    assert set(metrics) >= {"loss", "grad_norm", "lr", "tokens"}


def test_no_old_log_probs_means_the_current_policy(cases: dict[str, Case]) -> None:
    """Ratios are 1: the loss is the advantages', the gradient REINFORCE's, also under the mismatch
    weight, which then starts from the current policy."""
    case = replace(
        cases["qwen2_tied"], old_log_probs=None, algorithm=AlgorithmConfig(mismatch_weight=True)
    )
    model = tiny_models.build("qwen2_tied")
    exact = tuple(
        hf_log_probs(model, row)[0].detach().numpy().astype(np.float32) for row in case.rows
    )
    metrics = check("qwen2_tied", case, key=replace(case, old_log_probs=exact))
    assert metrics["ratio_mean"] == 1.0 and metrics["clip_fraction"] == 0.0
