"""Rules about held-out rows and their responses; each lets its neighbour pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.purpose import Purpose
from tests.unit.config.test_validate import files, problems

__all__ = ["files"]  # a fixture

# As `RULES` of test_validate.py.
RULES = [
    ("data.eval=[/nowhere.jsonl]", ("data.eval", "'/nowhere.jsonl'"), "data.eval=[]"),
    ("data.eval=['']", ("data.eval is ['']", "empty name"), "data.eval=''"),
    ("train.eval_every=5 data.eval=[]", ("eval_every is 5", "data.eval"), ""),
    ("eval.max_response_tokens=385",
     ("data.max_prompt_tokens 128 + eval.max_response_tokens 385", "= 513", "512"),
     "eval.max_response_tokens=384"),
    # as above, 6144 bytes * (128 + 257) tokens
    ("rollout.dtype=fp32 rollout.kv_cache_bytes=2365439 eval.max_response_tokens=257"
     " data.max_experience_tokens=128", ("2365439", "385 tokens", "2365440"),
     "rollout.dtype=fp32 rollout.kv_cache_bytes=2365440 eval.max_response_tokens=257"
     " data.max_experience_tokens=128"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "parts", "good"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(files: Path, bad: str, parts: tuple[str, ...], good: str) -> None:
    (problem,) = problems(files, *bad.split())
    for part in parts:
        assert part in problem
    assert problems(files, *good.split()) == ()


@pytest.mark.parametrize("purpose", ["train", "eval", "improve"])
def test_held_out_rows_may_be_in_several_files(files: Path, purpose: Purpose) -> None:
    one, two = files / "eval.jsonl", files / "sft.jsonl"
    assert problems(files, f"data.eval=[{one},{two}]", purpose=purpose) == ()
    (problem,) = problems(files, f"data.eval=[{one},{two},{one}]", purpose=purpose)
    assert f"data.eval names {one} twice" in problem
    (problem,) = problems(files, f"data.eval=[{one},/no.jsonl,{two}]", purpose=purpose)
    assert "'/no.jsonl'" in problem


def test_answers_that_are_improved_have_one_limit(files: Path) -> None:
    (problem,) = problems(files, "eval.max_response_tokens=64", purpose="improve")
    assert "set rollout.max_response_tokens" in problem
    assert problems(files, "eval.max_response_tokens=64", purpose="eval") == ()
