"""What is read and refused before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from herl_megatron.config.schema import (
    Config,
    DataConfig,
    HindsightConfig,
    ModelConfig,
    RolloutConfig,
    ScoringConfig,
    TrainConfig,
)
from herl_megatron.run.inputs import load_inputs
from tests.toy_copies import copy_toy_task


def test_evaluation_refuses_a_stored_head_that_the_config_ties(tmp_path: Path) -> None:
    """vllm-project/vllm#51063: training drops it, an engine may read it."""
    copy_toy_task(tmp_path, seed=0, train_prompts=2, heldout_prompts=2, sft_rows=2)
    config = Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        data=DataConfig(eval=str(tmp_path / "heldout.jsonl")),
    )
    assert len(load_inputs(config, training=False).eval) == 2
    twice = DataConfig(eval=(config.data.eval_files[0], str(tmp_path / "train.jsonl")))
    both = load_inputs(config.model_copy(update={"data": twice}), training=False)
    assert len(both.eval) == 4 and both.fingerprints["data.eval"].startswith("4 rows ")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight is stored and differs"):
        load_inputs(config, training=False)


OWN = "own_functions_of_the_inputs_test"
FUNCTIONS = """
def loss(inputs, *, scale: float):
    return -scale * inputs.advantages * inputs.log_probs


def of_the_reference(inputs):
    return inputs.log_probs - inputs.ref_log_probs


def for_rollouts(inputs):
    assert not inputs.off_policy.any()
    return inputs.log_probs


def advantage(group):
    return [0.0 if reward is None else reward for reward in group.rewards]


def too_few(group):
    return []
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A toy task, and a user's module beside it, where the test runs."""
    copy_toy_task(tmp_path, seed=0, train_prompts=8, heldout_prompts=2, sft_rows=2)
    (tmp_path / f"{OWN}.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop(OWN, None)


def config_with(folder: Path, **sections: Mapping[str, object]) -> Config:
    values: dict[str, Mapping[str, object]] = {
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "train.jsonl")},
        "train": {"prompts_per_step": 2, "prompts_per_optimizer_step": 2},
    }
    return Config.model_validate(values | sections)


def test_functions_of_ones_own_are_part_of_what_a_run_reads(own: Path) -> None:
    algorithm = {
        "loss": f"{OWN}:loss", "loss_options": {"scale": 2}, "advantage": f"{OWN}:advantage"
    }  # fmt: skip
    plain = load_inputs(config_with(own), training=True).fingerprints
    mine = load_inputs(config_with(own, algorithm=algorithm), training=True).fingerprints
    names = {
        f"source of algorithm.loss {OWN}:loss", f"source of algorithm.advantage {OWN}:advantage"
    }  # fmt: skip
    assert mine.keys() - plain.keys() == names
    (own / f"{OWN}.py").write_text(FUNCTIONS + "\n# edited\n")
    edited = load_inputs(config_with(own, algorithm=algorithm), training=True).fingerprints
    assert {name for name in mine if edited[name] != mine[name]} == names
    data = DataConfig(eval=str(own / "heldout.jsonl"))
    held_out = config_with(own, algorithm=algorithm).model_copy(update={"data": data})
    assert not names & load_inputs(held_out, training=False).fingerprints.keys()


@pytest.mark.parametrize(
    ("algorithm", "hindsight", "said"),
    [
        ({"loss": f"{OWN}:loss"}, {}, "algorithm.loss_options has no 'scale'"),
        ({"loss": f"{OWN}:of_the_reference"}, {}, "failed on 4 made-up tokens"),
        ({"loss": f"{OWN}:for_rollouts"}, {"off_policy_loss": "own"}, "on 6 made-up tokens"),
        ({"loss": "nowhere_at_all:f"}, {}, "algorithm.loss: cannot import 'nowhere_at_all'"),
        ({"advantage": f"{OWN}:too_few"}, {}, "algorithm.advantage: .* one number for each row"),
    ],
)
def test_functions_that_would_end_a_run_are_refused_first(
    own: Path, algorithm: dict[str, object], hindsight: dict[str, object], said: str
) -> None:
    config = config_with(own, algorithm=algorithm, hindsight=hindsight, model={"path": "/nowhere"})
    with pytest.raises(ValueError, match=said):
        load_inputs(config, training=True)


@pytest.mark.parametrize(
    ("algorithm", "hindsight"),
    [
        ({"loss": f"{OWN}:of_the_reference", "kl_coef": 0.1}, {}),
        ({"loss": f"{OWN}:for_rollouts"}, {"off_policy_loss": "shaped"}),
    ],
)
def test_a_loss_is_tried_on_what_the_run_will_give_it(
    own: Path, algorithm: dict[str, object], hindsight: dict[str, object]
) -> None:
    config = config_with(own, algorithm=algorithm, hindsight=hindsight)
    assert len(load_inputs(config, training=True).train) == 8


def test_the_source_of_own_code_is_one_of_the_runs_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_toy_task(tmp_path, seed=0, train_prompts=8, heldout_prompts=2, sft_rows=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "heldout.jsonl")),
        rollout=RolloutConfig(function="own_inputs:talk"),
        hindsight=HindsightConfig(method="own_inputs:Mine"),
        train=TrainConfig(prompts_per_step=4, prompts_per_optimizer_step=4),
    )

    def found(source: str, *, training: bool = True) -> dict[str, str]:
        (tmp_path / "own_inputs.py").write_text(source)
        sys.modules.pop("own_inputs", None)
        prints = load_inputs(config, training=training).fingerprints
        return {name: value for name, value in prints.items() if "own_inputs" in name}

    source = (
        "from herl_megatron.hindsight.method import HindsightMethod\n"
        "async def talk(talk): await talk.generate()\n"
        "class Mine(HindsightMethod):\n"
        "    def propose(self, group, context): ...\n"
    )
    before = found(source)
    assert set(before) == {
        "source of rollout.function own_inputs:talk",
        "source of hindsight.method own_inputs:Mine",
    }
    changed = found(source + "# another line\n")
    assert all(changed[name] != value for name, value in before.items())
    assert found(source) == before
    # An evaluation has no hindsight.
    assert set(found(source, training=False)) == {"source of rollout.function own_inputs:talk"}


def test_a_reward_and_a_prompt_of_ones_own_are_read_and_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything else is read; a changed source or text is another fingerprint."""
    copy_toy_task(tmp_path, seed=0, train_prompts=2, heldout_prompts=2, sft_rows=2)
    monkeypatch.chdir(tmp_path)
    source, prompt = tmp_path / "rewards_of_inputs.py", tmp_path / "revise.txt"
    prompt.write_text("{instruction}\n{unmet}\n")
    source.write_text("def flat(group):\n    return [1.0 for _ in group.texts]\n")
    config = Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "heldout.jsonl")),
        train=TrainConfig(prompts_per_step=2, prompts_per_optimizer_step=2),
        scoring=ScoringConfig(group_reward="rewards_of_inputs:flat"),
        hindsight=HindsightConfig(prompt_file=str(prompt)),
    )
    names = ["source of scoring.group_reward rewards_of_inputs:flat", "hindsight.prompt_file"]
    first = load_inputs(config, training=True)
    source.write_text(source.read_text().replace("1.0", "2.0"))
    second = load_inputs(config, training=True)
    prompt.write_text("{instruction}\n{draft}\n")
    third = load_inputs(config, training=True)
    seen = [tuple(inputs.fingerprints[name] for name in names) for inputs in (first, second, third)]
    assert seen[0][0] != seen[1][0] == seen[2][0] and seen[0][1] == seen[1][1] != seen[2][1]
    others = [
        {name: value for name, value in inputs.fingerprints.items() if name not in names}
        for inputs in (first, third)
    ]
    assert others[0] == others[1]
    evaluated = load_inputs(config, training=False)
    assert not set(names) & set(evaluated.fingerprints)
    improved = load_inputs(config, training=False, revises=True)
    assert improved.fingerprints[names[1]] == third.fingerprints[names[1]]
    assert names[0] not in improved.fingerprints
    prompt.write_text("{instruction}\n{missing}\n")
    with pytest.raises(ValueError, match="revise.txt': {missing} is no placeholder"):
        load_inputs(config, training=True)
    prompt.write_text("{instruction}\n{draft}\n")
    source.write_text("def other(group):\n    return []\n")
    with pytest.raises(ValueError, match="'rewards_of_inputs' .* has no 'flat'"):
        load_inputs(config, training=True)
