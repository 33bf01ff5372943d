"""Reading, refusing and writing configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.load import ConfigError, load_config, save_resolved


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  path: /models/toy\ntrain:\n  steps: 3\n")
    return path


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def test_file_overrides_and_defaults(minimal: Path) -> None:
    config = load_config(
        minimal,
        ["train.steps=10", "hindsight.alpha=0", "optimizer.lr=2e-5", "train.steps=11",
         "data.train=a=b=", "data.eval=",
         "megatron.virtual_pipeline=null", "run.name=${model.path}",
         "scoring.check_modules=[my.checks]"],
    )  # fmt: skip
    assert config.train.steps == 11  # the last one counts
    assert config.hindsight.alpha == 0
    assert config.optimizer.lr == 2e-5
    assert config.data.train == "a=b="
    assert config.data.eval == ""
    assert config.megatron.virtual_pipeline is None
    assert config.run.name == "/models/toy"
    assert config.scoring.check_modules == ("my.checks",)
    assert config.rollout.group_size == 8


def test_resolved_file_loads_to_an_equal_configuration(minimal: Path, tmp_path: Path) -> None:
    config = load_config(minimal, ["optimizer.lr=3e-7", "scoring.check_modules=[a, b]"])
    save_resolved(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    saved = (tmp_path / "saved.yaml").read_text()
    assert "kv_cache_bytes: 1073741824" in saved  # defaults are written too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "saved.yaml"]


def test_resolved_file_keeps_what_reference_compat_decides_open(
    minimal: Path, tmp_path: Path
) -> None:
    """Written defaults would count as choices that contradict `reference_compat` when reloaded."""
    config = load_config(minimal, ["hindsight.reference_compat=true", "hindsight.alpha=0.1"])
    save_resolved(config, tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert again == config
    assert again.hindsight.model_fields_set == {"reference_compat", "alpha"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stesp=1", "train.stesp: unknown key (value 1); did you mean train.steps?"),
        ("algorithm.alpha=1", "algorithm.alpha: unknown key (value 1); did you mean"
         " hindsight.alpha?"),
        ("rolout.top_p=1", "rolout: unknown key (value {'top_p': 1}); did you mean rollout?"),
    ],
)  # fmt: skip
def test_unknown_key_names_the_nearest(minimal: Path, override: str, expected: str) -> None:
    assert problems(minimal, override) == (expected,)


def test_unknown_key_without_a_near_one_lists_the_section(minimal: Path) -> None:
    (problem,) = problems(minimal, "cluster.qqqq=1")
    assert problem == (
        "cluster.qqqq: unknown key (value 1); known here: cluster.address, cluster.device,"
        " cluster.start_timeout_s, cluster.threads_per_rank"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=ten", "train.steps: 'ten' is not allowed: input should be a valid integer"
         " (expected int)"),
        ("train.steps=1.5", "train.steps: 1.5 is not allowed: input should be a valid integer"
         " (expected int)"),
        ("train.steps=true", "train.steps: True is not allowed: input should be a valid integer"
         " (expected int)"),
        ("train.steps='3'", "train.steps: '3' is not allowed: input should be a valid integer"
         " (expected int)"),
        ("run.name=12", "run.name: 12 is not allowed: input should be a valid string"
         " (expected str); quote it to make it text"),
        ("optimizer.lr=0", "optimizer.lr: 0 is not allowed: input should be greater than 0"
         " (expected float)"),
        ("hindsight.replace=best", "hindsight.replace: 'best' is not one of 'worst', 'random' or"
         " 'append'"),
        ("megatron.virtual_pipeline=x", "megatron.virtual_pipeline: 'x' is not allowed: input"
         " should be a valid integer (expected int | null)"),
        ("model=toy", "model: 'toy' is not allowed: input should be an object (expected a section"
         " of keys)"),
    ],
)  # fmt: skip
def test_wrong_value_names_path_value_and_type(minimal: Path, override: str, expected: str) -> None:
    assert problems(minimal, override) == (expected,)


def test_all_problems_are_reported_together(minimal: Path) -> None:
    found = problems(minimal, "train.stesp=1", "optimizer.lr=fast", "rollout.group_size=1")
    assert sorted(problem.split(":")[0] for problem in found) == [
        "optimizer.lr", "rollout.group_size", "train.stesp",
    ]  # fmt: skip


def test_malformed_overrides(minimal: Path) -> None:
    found = problems(minimal, "train.steps", "train. steps=2", "=1")
    assert len(found) == 3
    assert all("section.key=value" in problem for problem in found)


def test_missing_file_names_its_neighbours(minimal: Path) -> None:
    (problem,) = problems(minimal.parent / "rum.yaml")
    assert "no such file" in problem
    assert "run.yaml" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {path: a}\nrun:\n  seed: 1\n  seed: 2\n", "line 4"),
        ("model: {path: a\n", "not valid YAML"),
        ("- a\n- b\n", "sections"),
        ("", "sections"),
        ("train: {steps: 1}\n", "model: required and not given"),
        ("model: {path: '${nothing.here}'}\n", "nothing"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
