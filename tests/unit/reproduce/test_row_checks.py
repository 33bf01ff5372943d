"""What is refused before the first stage: keys that do nothing, rules that a stage breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herl_megatron.commands import reproduce
from herl_megatron.commands.row_checks import require_sound
from herl_megatron.config.key_by_key import key_by_key
from herl_megatron.config.load import ConfigError
from herl_megatron.reproduce.chain import make_chain
from herl_megatron.reproduce.paper_rows import find_row
from herl_megatron.reproduce.stage import ChainOptions
from tests.unit.reproduce.config_folder import copy_configs


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_configs(tmp_path_factory.mktemp("checks"))


def refused(configs: Path, name: str, *overrides: str, here: str = "", **more: Any) -> str:
    """What is said, or the empty string. here: beginning of the stages that run on this machine."""
    row = find_row(name)
    asked = ChainOptions(configs, configs.parent / "runs", overrides=overrides, **more)
    try:
        stages = make_chain(row, asked)
        local = [stage for stage in stages if here and stage.name.startswith(here)]
        require_sound(row, stages, asked, here=local)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("qwen2.5_7b/base", ()),
        ("qwen2.5_7b/if/sft", ("sft.steps=3", "scoring.workers=2", "judge.model=m",
                               "judge.base_url=http://a", "cluster.threads_per_rank=2")),
        ("llama3.2_3b/medical/sft", ("judge.samples=3", "optimizer.lr=1e-5", "run.seed=2")),
        ("llama3.2_3b/medical/dpo", ("scoring.workers=2", "judge.model=own")),
        ("qwen3_4b/medical/rlvr", ("eval.temperature=0.5",)),
        ("qwen3_4b/if/rlvr", ("rollout.temperature=0.5", "hindsight.temperature=0.5")),
        ("qwen2.5_7b/medical/naive_he", ()),
        ("llama3.2_3b/if/he", ()),
        ("qwen2.5_7b/medical/herl", ("hindsight.alpha=0.1", "train.steps=7")),
    ],
)  # fmt: skip
def test_what_a_row_reads_is_taken(name: str, overrides: tuple[str, ...], configs: Path) -> None:
    assert refused(configs, name, *overrides) == ""
    if not overrides:
        assert refused(configs, name, scale="toy") == ""


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("qwen2.5_7b/if/dpo", ("train.stepz=3", "foo=1"), ["2 problems", "train: train.stepz:",
                                                           "did you mean train.steps?", "foo:"]),
        ("qwen2.5_7b/if/sft", ("train.steps=3",), ["train.steps=3: does nothing for"
          " qwen2.5_7b/if/sft, whose `herl sft` reads the sections checkpoint, cluster, data",
          "did you mean sft.steps?"]),
        ("qwen2.5_7b/if/dpo", ("rollout.replicas=2",), ["samples nothing: dpo.eval_every is 0"]),
        ("qwen2.5_7b/if/sft", ("rollout.group_size=4",), ["does nothing for qwen2.5_7b/if/sft"]),
        ("qwen2.5_7b/if/sft", ("sft.eval_every=5", "rollout.group_size=4"),
         ["rollout.group_size=4: does nothing", "`herl sft` has no use for it"]),
        ("qwen2.5_7b/medical/sft", ("scoring.workers=2",), ["scoring.workers=2: does nothing"]),
        ("qwen2.5_7b/if/rlvr", ("hindsight.alpha=1",), ["hindsight.enabled is false"]),
        ("qwen2.5_7b/base", ("foo=1", "train.steps=2"), ["2 problems", "foo: qwen2.5_7b/base"
          " trains nothing", "--eval KEY=VALUE"]),
        # Rules between keys, and with the model's shape: 28 heads, 32,768 positions.
        ("qwen2.5_7b/if/sft", ("judge.model=m",), ["samples: judge.model is 'm' and judge.base_u"]),
        ("qwen2.5_7b/if/herl", ("rollout.mode=partial", "rollout.streamed=false"),
         ["train: rollout.mode is 'partial' with rollout.streamed false"]),
        ("qwen2.5_7b/if/dpo", ("megatron.tensor_parallel=3", "megatron.data_parallel=1"),
         ["train: megatron.tensor_parallel 3 does not divide"]),
        ("qwen2.5_7b/if/herl", ("rollout.max_response_tokens=32000",), ["train: ", "is 32768"]),
        ("qwen2.5_7b/if/herl", ("hindsight.method=nobody",), ["train: ", "nobody"]),
    ],
)  # fmt: skip
def test_what_it_does_not_read_is_refused(
    name: str, overrides: tuple[str, ...], said: list[str], configs: Path
) -> None:
    found = refused(configs, name, *overrides)
    assert [text for text in said if text not in found] == [], found


@pytest.mark.parametrize(
    ("name", "evaluation", "said"),
    [
        ("qwen2.5_7b/base", "train.steps=3", "--eval train.steps=3: does nothing for the eval"),
        ("qwen2.5_7b/base", "rollout.temperature=1", "does nothing for the evaluations"),
        (
            "qwen2.5_7b/base",
            "eval.max_response_tokens=40000",
            "eval.max_response_tokens 40000 = 41024 tokens",
        ),
        ("qwen2.5_7b/base", "judge.base_url=http://a", ""),  # ifeval has no judge's name to it
    ],
)
def test_keys_of_the_evaluations(name: str, evaluation: str, said: str, configs: Path) -> None:
    found = refused(configs, name, evaluation=(evaluation,))
    assert said in found and bool(said) == bool(found), found


def test_what_may_be_a_credential_is_not_repeated(configs: Path) -> None:
    for text in ("judge.key=sk-abcdefghijklmnopqrstuvwx0123456789", "judge.api_key=hunter2"):
        said = refused(configs, "qwen2.5_7b/base", text) + refused(
            configs, "qwen2.5_7b/if/herl", text
        )
        assert "judge.key" in said or "judge.api_key" in said
        assert text.partition("=")[2] not in said


def test_a_benchmark_of_two_files(tmp_path: Path) -> None:
    """In a folder `configs/` of one's own; on the command line the row decides."""
    file = copy_configs(tmp_path) / "benchmarks/ifbench.yaml"
    text = file.read_text(encoding="utf-8")
    one = "data/ifbench/eval.jsonl"
    assert text.count(f"eval: {one}") == 1
    file.write_text(text.replace(f"eval: {one}", f"eval: [{one}, b.jsonl]"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"ifbench.yaml: data.eval names 2 files; of a benchmark"):
        refused(tmp_path / "configs", "qwen2.5_7b/if/he")


def test_a_judges_keys_go_to_evaluations_with_a_judge(configs: Path) -> None:
    asked = ChainOptions(configs, Path("runs"), evaluation=("judge.model=m", "eval.top_p=0.5"))
    stages = {stage.name: stage.argv for stage in make_chain(find_row("qwen3_4b/base"), asked)}
    given = {name: "judge.model=m" in argv for name, argv in stages.items() if name[:5] == "eval_"}
    assert [name for name, there in given.items() if there] == [
        "eval_writingbench", "eval_llmeval_med", "eval_healthbench_500",
    ]  # fmt: skip
    assert all("eval.top_p=0.5" in stages[name] for name in given)


def test_this_machine_is_looked_at_where_it_runs_here(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from herl_megatron.config import machine

    monkeypatch.setattr(machine, "cuda_device_count", lambda: 0)
    found = refused(configs, "qwen2.5_7b/if/herl", here="eval")
    assert "- eval_ifeval, eval_ifbench, eval_muldimif, eval_writingbench: " in found
    assert "cluster.device is 'cuda' but torch sees no CUDA device" in found
    assert "train: " not in found
    assert refused(configs, "qwen2.5_7b/if/herl", here="data_") == ""  # as on a login node


def test_overrides_of_sections_key_by_key() -> None:
    given = ["data={train: a b, shuffle: false}", "train.steps=3", "judge.extra_body={a: 1}"]
    assert key_by_key(given) == (
        'data.train="a b"', "data.shuffle=false", "train.steps=3", "judge.extra_body={a: 1}",
    )  # fmt: skip
    given = ['judge={extra_body: {a: 1}, model: "1.5"}', "model=x", "foo={a: 1}"]
    assert key_by_key(given) == (
        'judge.extra_body={"a": 1}', 'judge.model="1.5"', 'model="x"', "foo={a: 1}",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="not valid YAML"):
        key_by_key(["data={train: x"])


ROW = "qwen2.5_7b/if/herl"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([ROW, "data={train: zzz.jsonl}"], 'data.train="zzz.jsonl": the row decides that'),
        ([ROW, "model={path: other}"], "the row decides that"),
        ([ROW, "model=x"], 'model="x": the row decides that'),
        ([ROW, "run={seed: 1, name: x}"], 'run.name="x": the row decides that'),
        ([ROW, "sft=null"], "the row decides that"),
        ([ROW, "--eval", "data={eval: other/x.jsonl}"], "the row decides that"),
        ([ROW, "--eval", "data={eval: [a/x.jsonl, b/y.jsonl]}"], "the row decides that"),
        ([ROW, "--input", "ifeval=a", "--input", "ifeval=b"], "ifeval is given twice, a and b"),
        (["--list", "nope"], "--list shows all rows; leave nope away"),
        (["--list", "foo=1"], "leave foo=1 away"),
        (["--list", "--eval", "eval.top_k=1", "--print"], "leave --print, --eval away"),
        (["--list", "--scale", "toy", "--dir", "x"], ""),
        ([ROW, "train.stepz=1"], "did you mean train.steps?"),
        ([ROW, "train.stepz=1", "--print"], "did you mean train.steps?"),
    ],
)
def test_the_command_line(
    words: list[str], said: str, configs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert reproduce.main([*words, "--configs", str(configs)]) == (2 if said else 0)
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
