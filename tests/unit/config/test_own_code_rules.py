"""What the rules say of own code that a configuration names, and of the keys around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.validate import rule_problems
from herl_megatron.prepared import method_problems

QUICKSTART = Path(__file__).parents[3] / "configs/quickstart_cpu.yaml"
CPU = Machine(shared_memory_bytes=1 << 30)
RULES = [
    ("hindsight.method=replai", ("'replai' is not one of revise, replay",),
     "hindsight.method=replay hindsight.replace_top_n=9"),
    ("hindsight.method=no_such:Method", ("hindsight.method", "cannot import 'no_such'"),
     "hindsight.method=no_such:Method hindsight.enabled=false"),
    ("hindsight.method=replay hindsight.reference_compat=true",
     ("'replay' with hindsight.reference_compat true",), "hindsight.reference_compat=true"),
    ("hindsight.method_options.count=1", ("method_options is for a method of your own",), ""),
    ("rollout.function=no_such:function", ("rollout.function", "cannot import 'no_such'"), ""),
    ("rollout.function=two_turns", ("'two_turns' is not of the form module:function",), ""),
    ("rollout.function_options.count=1", ("rollout.function, which is empty",), ""),
    ("rollout.function=json:dumps", ("json:dumps is not an async function",), ""),
    ("rollout.function=tests.unit.config.own_rollout:talk",
     ("function_options has no 'turns', which tests.unit.config.own_rollout:talk needs",),
     "rollout.function=tests.unit.config.own_rollout:talk rollout.function_options.turns=2"),
    ("rollout.function=tests.unit.config.own_rollout:talk rollout.function_options.turns=2"
     " rollout.mode=partial algorithm.mismatch_weight=true",
     ("'partial' with rollout.function 'tests.unit.config.own_rollout:talk'",),
     "rollout.function=tests.unit.config.own_rollout:talk rollout.function_options.turns=2"
     " rollout.mode=one_step_off algorithm.mismatch_weight=true"),
]  # fmt: skip


def problems(*overrides: str, purpose: Purpose = "train") -> tuple[str, ...]:
    """Of the quickstart's configuration with these changes."""
    try:
        config = load_config(QUICKSTART, overrides)
    except ConfigError as error:
        return error.problems
    resolved = effective_config(config, purpose=purpose)
    rules = tuple(rule_problems(resolved, purpose=purpose, machine=CPU))
    return rules + tuple(method_problems(resolved, purpose))


@pytest.mark.parametrize(("bad", "parts", "good"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(bad: str, parts: tuple[str, ...], good: str) -> None:
    (problem,) = problems(*bad.split())
    for part in parts:
        assert part in problem
    assert problems(*good.split()) == ()


def test_improving_draws_single_turns() -> None:
    own = ("rollout.function=tests.unit.config.own_rollout:talk",
           "rollout.function_options.turns=2")  # fmt: skip
    (problem,) = problems(*own, purpose="improve")
    assert "`herl improve` revises answers of one turn" in problem
    assert problems(*own, purpose="eval") == ()
