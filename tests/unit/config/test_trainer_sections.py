"""A trainer is told what its command reads and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.config.trainer_sections import TrainerSections, trainer_sections


def told(purpose: Purpose, **sections: dict[str, Any]) -> TrainerSections:
    config = Config.model_validate({"model": {"path": "m"}, **sections})
    return trainer_sections(config, purpose=purpose)


OF_RL: list[dict[str, dict[str, Any]]] = [
    {"algorithm": {"kl_coef": 0.1}},  # a reference model in memory, and another loss
    {"rollout": {"temperature": 0.5, "tensor_parallel": 4, "max_response_tokens": 7}},
    {"hindsight": {"alpha": 0.3, "behavior": "one"}},
    {"train": {"steps": 3, "prompts_per_step": 2, "prompts_per_optimizer_step": 2}},
    {"data": {"max_experience_tokens": 5, "max_prompt_tokens": 5}},
    {"judge": {"model": "j"}, "scoring": {"workers": 3}, "eval": {"seed": 4}},
]


@pytest.mark.parametrize("sections", OF_RL, ids=lambda sections: "+".join(sections))
@pytest.mark.parametrize("purpose", ["sft", "dpo"])
def test_what_fits_rows_hears_nothing_of_a_policy(
    purpose: Purpose, sections: dict[str, dict[str, Any]]
) -> None:
    assert told(purpose, **sections) == told(purpose)
    assert told(purpose).policy is None


def test_what_trains_a_policy_hears_of_it() -> None:
    for sections in OF_RL[:4]:
        assert told("train", **sections) != told("train")
    for sections in OF_RL[4:]:  # others' sections
        assert told("train", **sections) == told("train")


def test_ranks_are_told_where_a_users_modules_may_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = told("train").policy
    assert policy is not None and policy.folder == str(tmp_path)


@pytest.mark.parametrize("purpose", ["train", "sft", "dpo"])
@pytest.mark.parametrize(
    "sections",
    [{"optimizer": {"lr": 0.5}}, {"megatron": {"data_parallel": 2}}, {"run": {"seed": 5}}],
    ids=str,
)
def test_every_trainer_hears_of_its_own_sections(
    purpose: Purpose, sections: dict[str, dict[str, Any]]
) -> None:
    assert told(purpose, **sections) != told(purpose)
