"""Rules of SFT and DPO: what only counts where they evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from tests.unit.config.test_validate import files, problems

__all__ = ["files"]  # the fixture: a folder with a model, rows and a configuration


@pytest.mark.parametrize("purpose", ["sft", "dpo"])
def test_who_evaluates_while_fitting_rows_has_engines_and_who_does_not_has_none(
    files: Path, purpose: Purpose
) -> None:
    def found(*overrides: str) -> tuple[str, ...]:
        return problems(files, *overrides, purpose=purpose)

    asks = f"{purpose}.eval_every=4"
    assert found(asks) == ()
    (problem,) = found(asks, "data.eval=''")
    assert problem.startswith(f"{purpose}.eval_every is 4 but data.eval is empty")
    for wrong, said in (
        ("data.eval=nowhere", "data.eval: no such file"),
        ("rollout.tensor_parallel=7", "rollout.tensor_parallel"),
        ("data.max_prompt_tokens=9999", "data.max_prompt_tokens 9999 + rollout.max_response"),
        ("judge.deadline_s=1", "judge.deadline_s is 1"),
    ):
        assert any(said in problem for problem in found(asks, wrong)), found(asks, wrong)
        assert found(wrong) == ()
    small = Machine(shared_memory_bytes=0)
    (problem,) = problems(files, asks, purpose=purpose, machine=small)
    assert "two buckets need" in problem
    gpus = Machine(gpus=1, transformer_engine=True)
    layout = ("cluster.device=cuda", "rollout.replicas=2")
    assert any("rollout.replicas 2" in p for p in
               problems(files, asks, *layout, purpose=purpose, machine=gpus))  # fmt: skip
    assert not any("rollout.replicas 2" in p for p in
                   problems(files, *layout, purpose=purpose, machine=gpus))  # fmt: skip
