"""Run folders read back, and put together by seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.report.runs import differing_settings, group_runs, read_run, spread
from tests.unit.report.run_folders import make_run

LINES = [{"step": 0, "reward/mean": 0.25}, {"step": 1, "reward/mean": 0.5}]


def test_a_running_run_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "eval/reward": 0.1},
        {"step": 0, "reward/mean": 0.25, "train/loss": None},
        {"step": 1, "reward/mean": 0.5},
        {"step": 1, "reward/mean": 0.75},  # done again after a resume
    ]
    path = make_run(tmp_path, seed=0, lines=lines, steps=9)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/me')
    run = read_run(path)
    assert run.metrics["reward/mean"] == {0: 0.25, 1: 0.75}
    assert math.isnan(run.metrics["train/loss"][0])
    assert (run.kind, run.steps, run.planned_steps, run.seed) == ("train", 2, 9, 0)


def test_an_evaluation_after_the_last_step_is_no_step(tmp_path: Path) -> None:
    """As a run of two steps logs them: before the first, between, and after the last one. What an
    evaluation counts besides takes nobody's place: step 1 restarted two engines."""
    restarts = "rollout/engine_restarts"
    lines = [
        {"step": 0, "eval/reward": 0.1, restarts: 0.0},
        {"step": 0, "reward/mean": 0.25, restarts: 0.0},
        {"step": 1, "reward/mean": 0.5, restarts: 2.0},
        {"step": 1, "eval/reward": 0.2, restarts: 5.0},
        {"step": 2, "eval/reward": 0.3, restarts: 1.0},
    ]
    run = read_run(make_run(tmp_path, seed=0, lines=lines, steps=2))
    assert (run.kind, run.steps, run.planned_steps) == ("train", 2, 2)
    assert run.metrics[restarts] == {0: 0.0, 1: 2.0}
    assert run.metrics["eval/reward"] == {0: 0.1, 1: 0.2, 2: 0.3}


def test_what_herl_eval_leaves_is_an_evaluation(tmp_path: Path) -> None:
    lines = [{"step": 0, "eval/reward": 0.1, "eval/unscored": 0.0, "rollout/engine_restarts": 0.0}]
    run = read_run(make_run(tmp_path, seed=0, lines=lines, steps=40))
    assert (run.kind, run.steps) == ("eval", 0)


@pytest.mark.parametrize(
    ("metric", "kind", "planned"),
    [
        ("sft/loss", "sft", 100), ("dpo/loss", "dpo", 100), ("improve/reward", "improve", 3),
        ("reward/mean", "train", 9), ("eval/reward", "eval", 9),
    ],
)  # fmt: skip
def test_what_was_run_is_told_by_what_was_logged(
    tmp_path: Path, metric: str, kind: str, planned: int
) -> None:
    run = read_run(make_run(tmp_path, seed=0, lines=[{"step": 0, metric: 0.5}], steps=9))
    assert (run.kind, run.planned_steps) == (kind, planned)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no run"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "no steps yet"),
        (lambda run: (run / "metrics.jsonl").unlink(), "no steps yet"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 0\n{"step": 1}\n'), "jsonl:1"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "not valid YAML"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    run = make_run(tmp_path, seed=0, lines=LINES)
    spoil(run)
    with pytest.raises(ValueError, match=said):
        read_run(run)


def test_a_parent_of_runs_names_them(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, lines=LINES)
    with pytest.raises(ValueError, match="holds the runs herl"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "nowhere")


def test_seeds_of_one_setup_are_one_group(tmp_path: Path) -> None:
    """Paths differ by the run's own folder, or by the seed in them; learning settings do not."""
    runs = [
        make_run(tmp_path / "a", seed=2, lines=LINES),
        make_run(tmp_path / "b", seed=1, lines=LINES),
        make_run(tmp_path / "c", seed=3, lines=LINES, alpha=0.0),
        make_run(tmp_path / "d", seed=1, lines=LINES),  # seed 1 again: no further seed
    ]
    groups = group_runs([read_run(run) for run in runs])
    assert [[run.path.parent.name for run in group.runs] for group in groups] == [
        ["b", "a"], ["c"], ["d"],
    ]  # fmt: skip
    assert [group.label for group in groups] == [
        f"{tmp_path}/a/herl (2 seeds)", f"{tmp_path}/c/herl", f"{tmp_path}/d/herl",
    ]  # fmt: skip
    assert differing_settings(groups) == {"hindsight.alpha": [0.05, 0.0, 0.05]}


@pytest.mark.parametrize(
    ("model", "together"),
    [
        ("shared/seed{}/policy", True),
        ("shared/policy", True),
        ("shared/other{}{}/policy", False),  # 11 and 22 are not the seeds 1 and 2
    ],
)
def test_a_seed_in_a_path_is_forgotten(tmp_path: Path, model: str, together: bool) -> None:
    runs = [
        make_run(tmp_path / str(seed), seed=seed, lines=LINES, model=model.format(seed, seed))
        for seed in (1, 2)
    ]
    assert len(group_runs([read_run(run) for run in runs])) == (1 if together else 2)


def test_several_held_out_files_are_of_one_setup_file_by_file(tmp_path: Path) -> None:
    def together(*files: tuple[str, ...]) -> bool:
        runs = [
            make_run(tmp_path / f"{len(files[0])}{files[1][0]}" / str(seed), seed=seed, lines=LINES,
                     model="m", held_out=held_out)
            for seed, held_out in zip((1, 2), files, strict=True)
        ]  # fmt: skip
        return len(group_runs([read_run(run) for run in runs])) == 1

    assert together(("s/seed1/a", "s/seed1/b"), ("s/seed2/a", "s/seed2/b"))
    assert not together(("s/seed1/a", "s/seed1/b"), ("s/seed2/b", "s/seed2/a"))
    assert not together(("s/a",), ("s/a", "s/b"))


def test_mean_and_range_where_every_seed_has_a_number() -> None:
    found = spread([{0: 0.25, 1: 0.5, 2: 1.0}, {0: 0.75, 1: math.nan, 2: 0.25}, {0: 0.5, 2: 0.25}])
    assert found.steps == (0, 2)
    assert found.mean == (0.5, 0.5)
    assert found.low == (0.25, 0.25)
    assert found.high == (0.75, 1.0)
