"""Equal steps, equal generated tokens: worked out by hand on made-up runs."""

import json
from pathlib import Path

import pytest

from tools.bench import bench_arms
from tools.bench.bench_arms import Curve, compare, interpolate, read_curve, token_budgets


def _curve(arm: str, seed: int, tokens: list[float], reward: list[float]) -> Curve:
    return Curve(
        arm=arm,
        seed=seed,
        steps=[10 * index for index in range(len(tokens))],
        tokens=tokens,
        reward=reward,
        all_satisfied=[value / 2 for value in reward],
        revisions=0,
        accepted=0,
        gain=None,
        clip_fraction=None,
    )


def test_interpolation_is_the_broken_line_and_ends_where_it_was_measured() -> None:
    xs, ys = [0.0, 100.0, 300.0], [0.2, 0.4, 1.0]
    assert interpolate(xs, ys, 0) == 0.2
    assert interpolate(xs, ys, 100) == pytest.approx(0.4)
    assert interpolate(xs, ys, 150) == pytest.approx(0.55)
    assert interpolate(xs, ys, 300) == pytest.approx(1.0)
    for outside in (-1, 301):
        with pytest.raises(ValueError, match="outside the measured range 0 .. 300"):
            interpolate(xs, ys, outside)


def test_arms_are_compared_at_the_tokens_of_the_shortest_of_their_seed() -> None:
    curves = [
        _curve("rlvr", 0, [0, 100, 200, 300], [0.4, 0.5, 0.6, 0.7]),
        _curve("herl", 0, [0, 140, 250], [0.4, 0.8, 0.9]),
        _curve("rlvr", 1, [0, 100, 180, 240], [0.4, 0.5, 0.6, 0.8]),
        _curve("herl", 1, [0, 150, 260], [0.4, 0.7, 0.8]),
    ]
    assert token_budgets(curves) == {0: 250, 1: 240}
    found = compare(curves, steps=20)
    assert found["rlvr"]["reward at equal steps"] == {0: 0.6, 1: 0.6}
    assert found["herl"]["reward at equal steps"] == {0: 0.9, 1: 0.8}
    # RLVR of seed 0: half way from 200 to 300 tokens. HeRL of seed 1: 90 of 110 tokens further.
    assert found["rlvr"]["reward at equal tokens"] == pytest.approx({0: 0.65, 1: 0.8})
    assert found["herl"]["reward at equal tokens"] == pytest.approx({0: 0.9, 1: 0.7 + 0.1 * 9 / 11})
    assert found["herl"]["all_satisfied at equal tokens"][0] == pytest.approx(0.45)


def test_tokens_of_a_run_are_those_generated_before_an_evaluation(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [
        {"step": 0, "eval/reward": 0.3, "eval/all_satisfied": 0.1},
        {"step": 0, "rollout/tokens": 50, "rollout/revision_tokens": 7, "train/clip_fraction": 0.0},
        {"step": 1, "rollout/tokens": 40, "rollout/revision_tokens": 3, "train/clip_fraction": 0.1},
        {"step": 2, "eval/reward": 0.5, "eval/all_satisfied": 0.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    hindsight = {"revisions": 4.0, "accepted": 2.0, "gain": 0.25}
    (tmp_path / "summary.json").write_text(json.dumps({"hindsight": hindsight}))
    curve = read_curve(tmp_path, arm="herl", seed=3)
    assert (curve.steps, curve.tokens, curve.reward) == ([0, 2], [0.0, 100.0], [0.3, 0.5])
    assert (curve.revisions, curve.accepted, curve.gain) == (4.0, 2.0, 0.25)
    assert curve.clip_fraction == pytest.approx(0.05)


def test_spread_is_the_sample_standard_deviation() -> None:
    assert bench_arms.spread_text([0.8, 0.9, 1.0]) == "0.900 +- 0.100"
    assert bench_arms.spread_text([-0.5], sign=True) == "-0.500"
