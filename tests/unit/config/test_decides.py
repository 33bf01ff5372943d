"""What each key decides: all of them say it, and the lists that follow from it are as expected."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from herl_megatron.config.decides import differences, keys, keys_that_decide
from herl_megatron.config.explain import reference
from herl_megatron.config.load import known_keys
from herl_megatron.config.purpose import SECTIONS
from herl_megatron.config.schema import Config, DataConfig, EvalConfig, ModelConfig, RolloutConfig
from herl_megatron.config.schema.base import BY_CONTENT, Decides, Numbers, Speed


def test_every_key_says_what_it_decides() -> None:
    leaves = [name for name in known_keys() if "." in name]
    assert [key.path for key in keys()] == leaves


def test_a_key_that_does_not_say_it_is_named() -> None:
    class Silent(BaseModel):
        said: Numbers[int] = 1
        silent: int = 1

    class Torn(BaseModel):
        both: Annotated[Numbers[int], Decides.SPEED] = 1

    with pytest.raises(ValueError, match="silent must say once what it decides"):
        list(keys(Silent))
    with pytest.raises(ValueError, match="both must say once"):
        list(keys(Torn))


def test_lists_that_were_kept_by_hand() -> None:
    """As the findings and the code before this had them."""
    paths = {key.path for key in keys_that_decide(Decides.VERDICTS, purpose="train")}
    assert paths == {
        "scoring.check_timeout_s", "scoring.answer_after", "scoring.check_modules", "judge.model",
        "judge.prompt", "judge.grader_prompt", "judge.temperature", "judge.max_tokens",
        "judge.samples", "scoring.group_reward", "scoring.group_reward_timeout_s",
        "judge.structured", "judge.extra_body", "judge.evidence", "judge.canary",
    } | ({"scoring.check_memory_bytes"} & paths)  # fmt: skip
    paths = {key.path for key in keys_that_decide(Decides.EVALUATION, purpose="train")}
    assert paths == {
        "data.eval",
        "eval.samples_per_prompt",
        "eval.temperature",
        "eval.top_p",
        "eval.max_response_tokens",
        "eval.seed",
    }
    numbers = {key.path for key in keys_that_decide(Decides.NUMBERS, purpose="train")}
    assert {"run.seed", "model.path", "optimizer.lr", "hindsight.alpha", "algorithm.kl_coef",
            "megatron.precision", "megatron.fp8", "rollout.temperature", "train.steps",
            "megatron.distributed_optimizer", "data.shuffle"} <= numbers  # fmt: skip
    free = {"megatron.tensor_parallel", "rollout.replicas", "judge.base_url", "checkpoint.every"}
    assert not free & numbers
    assert not any(path.startswith(("sft.", "dpo.", "improve.")) for path in numbers)
    improving = {key.path for key in keys_that_decide(*Decides, purpose="improve")}
    assert {"improve.rounds", "eval.seed"} <= improving and "optimizer.lr" not in improving
    for purpose in ("sft", "dpo"):  # what is sampled is only measured
        fitted = {key.path for key in keys_that_decide(Decides.NUMBERS, purpose=purpose)}
        assert {"run.seed", "model.path", "optimizer.lr", "data.shuffle", "megatron.precision",
                f"{purpose}.steps", f"{purpose}.data"} <= fitted  # fmt: skip
        assert not any(path.startswith(("rollout.", "data.max")) for path in fitted)
        assert keys_that_decide(Decides.VERDICTS, purpose=purpose) == []
        measured = {key.path for key in keys_that_decide(Decides.EVALUATION, purpose=purpose)}
        assert measured >= paths | {"rollout.max_response_tokens", "rollout.dtype", "judge.model",
                                    "data.max_prompt_tokens", "scoring.answer_after"}  # fmt: skip
        assert not {"rollout.temperature", "rollout.replicas", "judge.base_url"} & measured
    by_content = {key.path for key in keys() if key.by_content}
    assert by_content == {
        "model.path", "model.megatron_path", "data.train", "data.eval", "sft.data", "dpo.data",
        "judge.prompt", "judge.grader_prompt", "hindsight.prompt_file",
    }  # fmt: skip


def test_sections_are_the_schemas() -> None:
    assert set().union(*SECTIONS.values()) == set(Config.model_fields)


def test_differences_name_the_key_and_both_values() -> None:
    before = Config(model=ModelConfig(path="m"), data=DataConfig(train="elsewhere.jsonl"))
    earlier = before.model_dump(mode="json")
    now = before.model_copy(
        update={
            "rollout": RolloutConfig(group_size=4, replicas=3),
            "eval": EvalConfig(seed=1),
        }
    )
    found = list(differences(earlier, now, Decides.NUMBERS, purpose="train"))
    assert found == [("rollout.group_size", 4, 8)]
    found = list(differences(earlier, now, Decides.EVALUATION, purpose="train"))
    assert found == [("eval.seed", 1, 1234)]
    del earlier["rollout"]["group_size"]  # a key that is new since was what its default is
    found = list(differences(earlier, now, Decides.NUMBERS, purpose="train"))
    assert found == [("rollout.group_size", 4, 8)]
    earlier["data"]["train"] = ""
    found = list(differences(earlier, now, Decides.NUMBERS, purpose="train"))
    assert ("data.train", "elsewhere.jsonl", "") in found  # there was none
    earlier["data"]["train"] = "here.jsonl"
    found = list(differences(earlier, now, Decides.NUMBERS, purpose="train"))
    assert found == [("rollout.group_size", 4, 8)]
    found = list(differences(earlier, now, Decides.NUMBERS, purpose="train", by_path=True))
    assert ("data.train", "elsewhere.jsonl", "here.jsonl") in found and len(found) == 2
    earlier["data"]["train"] = "./elsewhere.jsonl"
    found = list(differences(earlier, now, Decides.NUMBERS, purpose="train", by_path=True))
    assert len(found) == 1


def test_several_files_are_compared_one_by_one() -> None:
    """One in a list is the same as that one; by content whatever has rows is."""
    earlier = Config(data=DataConfig(eval=("a.jsonl", "b.jsonl"))).model_dump(mode="json")

    def changed(value: Any, *, by_path: bool = True) -> list[str]:
        now = Config(data=DataConfig(eval=value))
        found = differences(earlier, now, Decides.EVALUATION, purpose="train", by_path=by_path)
        return [key for key, _, _ in found]

    assert changed(("./a.jsonl", "b.jsonl")) == []
    assert changed("a.jsonl") == changed(("b.jsonl", "a.jsonl")) == changed("") == ["data.eval"]
    assert changed("a.jsonl", by_path=False) == [] and changed((), by_path=False) == ["data.eval"]
    earlier["data"]["eval"] = "a.jsonl"
    assert changed(("a.jsonl",)) == []


def test_improving_reads_few_keys_of_its_sections() -> None:
    paths = {key.path for key in keys_that_decide(*Decides, purpose="improve")}
    unread = {"data.shuffle", "data.train", "rollout.group_size", "rollout.mode", "hindsight.alpha",
              "hindsight.gamma", "rollout.temperature", "hindsight.temperature",
              "scoring.group_reward", "scoring.group_reward_timeout_s"}  # fmt: skip
    assert not paths & unread
    assert {"hindsight.prompt_style", "hindsight.prompt_file", "hindsight.chat_template",
            "rollout.max_response_tokens", "rollout.dtype", "data.max_experience_tokens",
            "data.eval"} <= paths  # fmt: skip


def test_markers_are_told_apart() -> None:
    class Two(BaseModel):
        one: Annotated[Speed[str], BY_CONTENT] = ""
        two: Speed[str] = ""

    assert [(key.decides, key.by_content) for key in keys(Two)] == [
        (Decides.SPEED, True),
        (Decides.SPEED, False),
    ]


def test_the_reference_page_is_up_to_date() -> None:
    """`python -m herl_megatron.config.explain > docs/configuration.md` writes it anew."""
    from pathlib import Path

    page = Path(__file__).parents[3] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference()
