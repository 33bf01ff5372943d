"""Blocks of rows; names of a user's own loss and advantage, looked at without importing."""

from __future__ import annotations

import pytest

from herl_megatron.config.load import load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.rules import algorithm


def problems(*overrides: str, purpose: Purpose = "train") -> list[str]:
    config = load_config([], ["model.path=m", "train.steps=1", *overrides])
    return list(algorithm.problems(config, purpose=purpose, machine=Machine()))


RULES = [
    ("algorithm.loss=cispo", ("algorithm.loss is 'cispo'", "'clip'", "module:function"),
     "algorithm.loss=my_losses:cispo"),
    ("algorithm.loss=my_losses.py:cispo(x)", ("is not of the form module:function",),
     "algorithm.loss=my.losses:cispo algorithm.loss_options.high=4"),
    ("algorithm.loss_options.high=4", ("algorithm.loss_options is {'high': 4}", "takes none"),
     "algorithm.loss=m:f algorithm.loss_options.high=4"),
    ("algorithm.advantage=ranks", ("algorithm.advantage is 'ranks'", "'group_relative'"),
     "algorithm.advantage=m:ranks"),
    ("algorithm.advantage_options.a=true", ("algorithm.advantage_options is {'a': True}",),
     "algorithm.advantage=m:ranks algorithm.advantage_options.a=true"),
    ("algorithm.aggregation=block_token_mean", ("block_rows is null", "16 in the released"),
     "algorithm.aggregation=block_token_mean algorithm.block_rows=16"),
    ("algorithm.block_rows=16", ("block_rows is 16", "'token_mean'"), "algorithm.block_rows=null"),
    ("hindsight.off_policy_loss=own", ("'own' but algorithm.loss is 'clip'",),
     "hindsight.off_policy_loss=own algorithm.loss=m:f"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "parts", "good"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(bad: str, parts: tuple[str, ...], good: str) -> None:
    (problem,) = problems(*bad.split())
    for part in parts:
        assert part in problem
    assert problems(*good.split()) == []
    assert problems(*bad.split(), purpose="sft") == []  # it has no policy


def test_options_keep_their_types() -> None:
    given = "algorithm.loss_options={a: 1, b: 1.0, c: true, d: text, e: '2'}"
    options = load_config([], ["model.path=m", "train.steps=1", given]).algorithm.loss_options
    assert options == {"a": 1, "b": 1.0, "c": True, "d": "text", "e": "2"}
    kinds = [type(value) for value in options.values()]
    assert kinds == [int, float, bool, str, str]


@pytest.mark.parametrize("value", [".nan", ".inf", "[1, 2]", "{x: 1}", "null"])
def test_what_is_no_option(value: str) -> None:
    with pytest.raises(ValueError, match="loss_options"):
        load_config([], ["model.path=m", "train.steps=1", f"algorithm.loss_options={{a: {value}}}"])
