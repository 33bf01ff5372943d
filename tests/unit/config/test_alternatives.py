"""How long a loop is, said in steps or in epochs: the later file or override has the last word."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.load import load_config

EPOCHS = "train: {epochs: 6}\nsft: {epochs: 2}\n"
STEPS = "train: {steps: 60}\nsft: {steps: 20}\n"


@pytest.mark.parametrize(
    ("first", "second", "override", "train", "sft"),
    [
        (EPOCHS, STEPS, [], (60, None), (20, None)),
        (STEPS, EPOCHS, [], (None, 6), (None, 2)),
        (EPOCHS, "run: {seed: 0}\n", ["train.steps=10"], (10, None), (None, 2)),
        (STEPS, "run: {seed: 0}\n", ["sft.epochs=0.5"], (60, None), (None, 0.5)),
        (
            EPOCHS,
            "run: {seed: 0}\n",
            ["train.epochs=null"],
            (None, None),
            (None, 2),
        ),  # the default of steps
        (EPOCHS, "run: {seed: 0}\n", ["train.eval_every=5"], (None, 6), (None, 2)),
        (
            STEPS,
            "run: {seed: 0}\n",
            ["train.steps=5", "train.epochs=1"],
            (5, 1),
            (20, None),
        ),  # for the rules
    ],
)
def test_the_later_word_counts(
    tmp_path: Path, first: str, second: str, override: list[str],
    train: tuple[int | None, float | None], sft: tuple[int | None, float | None],
) -> None:  # fmt: skip
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file, text in zip(files, (first, second), strict=True):
        file.write_text(text)
    config = load_config(files, override)
    assert (config.train.steps, config.train.epochs) == train
    assert (config.sft.steps, config.sft.epochs) == sft


def test_an_extended_file_is_earlier(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(EPOCHS)
    (tmp_path / "own.yaml").write_text("extends: [base.yaml]\ntrain: {steps: 7}\n")
    config = load_config(tmp_path / "own.yaml")
    assert (config.train.steps, config.train.epochs, config.sft.epochs) == (7, None, 2)
