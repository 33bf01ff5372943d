"""A row's commands: the real parsers and the real loader take them, and they fit together."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from herl_megatron.commands import data, pairs, reproduce, tasks
from herl_megatron.config.load import load_config, split_arguments
from herl_megatron.config.purpose import RESUMES
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.schema import Config
from herl_megatron.reproduce.chain import make_chain
from herl_megatron.reproduce.data_sets import EVALUATION, TRAINING
from herl_megatron.reproduce.paper_rows import MODELS, TASKS, PaperRow, all_rows, find_row
from herl_megatron.reproduce.row_parts import LAYOUTS
from herl_megatron.reproduce.stage import ChainOptions, Stage, setting
from tests.unit.reproduce.config_folder import ROOT, copy_configs

RUNS = ("train", "sft", "dpo", "eval")
PRESETS = [
    p for p in ("herl", "released", "paper") if (ROOT / f"configs/presets/{p}.yaml").exists()
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_configs(tmp_path_factory.mktemp("reproduce"))


def asked(configs: Path, **changes: Any) -> ChainOptions:
    return ChainOptions(configs=configs, folder=Path("runs/r"), **changes)


def loaded(stage: Stage) -> Config:
    """As the command itself would read its arguments."""
    assert stage.argv[0] in RUNS
    return load_config(*split_arguments(stage.argv[1:]))


def by_name(stages: Sequence[Stage]) -> dict[str, Stage]:
    named = {stage.name: stage for stage in stages}
    assert len(named) == len(stages)
    return named


def given(stage: Stage, option: str) -> str:
    return stage.argv[stage.argv.index(option) + 1]


CASES = [(row.name, "released", "full") for row in all_rows()]
CASES += [(name, "released", "toy") for name in ("llama3.2_3b/base", "qwen2.5_7b/medical/naive_he")]
CASES += [(f"qwen3_4b/if/{method}", "released", "toy") for method in ("sft", "dpo", "rlvr", "herl")]
CASES += [(f"qwen3_4b/{task}/herl", preset, "full") for task in TASKS for preset in PRESETS]


@pytest.mark.parametrize(("name", "preset", "scale"), sorted(set(CASES)))
def test_commands_of_every_row_are_taken(name: str, preset: Any, scale: Any, configs: Path) -> None:
    """What a stage reads, an earlier one makes; the last are one evaluation for each cell."""
    row = find_row(name)
    stages = make_chain(row, asked(configs, preset=preset, scale=scale))
    made: set[str] = set()
    for stage in stages:
        assert shlex.split(stage.command)[1:] == list(stage.argv)
        command, *rest = stage.argv
        if command in RUNS:
            config = effective_config(loaded(stage), purpose=command)  # type: ignore[arg-type]
            assert f"{config.run.dir}/{config.run.name}" == str(stage.makes)
            assert config.run.resume == (command in RESUMES) != config.run.overwrite
            reads = {"train": config.data.train, "sft": config.sft.data, "dpo": config.dpo.data}
            rows = Path(reads.get(command) or str(config.data.eval))
            assert made & {str(rows), *map(str, rows.parents)}, f"{stage.name}: nobody made {rows}"
        elif command == "tasks":
            assert tasks.parse_arguments(rest).out == stage.makes
        elif command == "data" and rest[0] not in ("sft", "pairs"):
            assert data.parse_arguments(rest).out == stage.makes
        else:
            assert given(stage, "--out") == str(stage.makes)
        made.add(str(stage.makes))
    cells = [stage.name.removeprefix("eval_") for stage in stages if stage.name[:5] == "eval_"]
    assert cells == (list(row.benchmarks) if scale == "full" else ["toy"])
    if row.method != "base":
        model = f"runs/r/{row.name}/train/policy"
        assert all(loaded(stage).model.path == model for stage in stages[-len(cells) :])


@pytest.mark.parametrize(("model", "task"), LAYOUTS)
def test_the_row_of_herl_is_the_file_in_configs_reproduce(
    model: str, task: str, configs: Path
) -> None:
    """But for where it is."""
    train = by_name(make_chain(PaperRow(model, task, "herl"), asked(configs)))["train"]
    shipped = load_config(configs / f"reproduce/{model}_{task}.yaml")
    assert loaded(train).model_dump(exclude={"run"}) == shipped.model_dump(exclude={"run"})


def test_methods_differ_in_what_their_names_say(configs: Path) -> None:
    def hindsight(method: str) -> dict[str, Any]:
        row = PaperRow("qwen2.5_7b", "if", method)
        return loaded(by_name(make_chain(row, asked(configs)))["train"]).hindsight.model_dump()

    herl = hindsight("herl")
    assert herl["enabled"] and herl["alpha"] > 0 and herl["prompt_style"] == "criteria"
    assert hindsight("he") == herl | {"alpha": 0.0}
    assert hindsight("naive_he") == herl | {"alpha": 0.0, "prompt_style": "naive"}
    assert hindsight("rlvr") == herl | {"enabled": False}


def test_where_sft_and_dpo_take_their_answers_from(configs: Path) -> None:
    """HIR has no references: best of N, best against worst; RaR has: references, and these against
    an own answer. All rows of a model and task share the samples."""

    def stages(name: str) -> dict[str, Stage]:
        return by_name(make_chain(find_row(name), asked(configs)))

    sft, dpo = stages("qwen3_4b/if/sft"), stages("qwen3_4b/if/dpo")
    assert sft["samples"] == dpo["samples"]
    samples = "runs/r/shared/samples_qwen3_4b_if"
    assert loaded(sft["samples"]).data.eval == "data/hir/train.jsonl"
    assert sft["rows"].argv[:4] == ("data", "sft", "--best-of", samples)
    assert given(sft["rows"], "--min-reward") == "1.0"
    assert dpo["pairs"].argv[:2] == ("pairs", f"{samples}/rollouts/eval.jsonl")
    assert list(sft) == [
        "data_if", "samples", "rows", "train", "data_ifeval", "data_ifbench", "data_muldimif",
        "data_writingbench", "eval_ifeval", "eval_ifbench", "eval_muldimif", "eval_writingbench",
    ]  # fmt: skip

    rows = "data/rar_reference/train.jsonl"
    sft, dpo = stages("qwen3_4b/medical/sft"), stages("qwen3_4b/medical/dpo")
    assert "samples" not in sft and given(sft["rows"], "--references") == rows
    assert given(sft["rows"], "--judge") == "http://127.0.0.1:8000/v1"
    assert given(dpo["pairs"], "--references") == rows
    assert dpo["pairs"].argv[:3] == ("data", "pairs", "runs/r/shared/samples_qwen3_4b_medical")


def test_the_judge_of_references_is_that_of_the_training_rows(configs: Path) -> None:
    options = asked(configs, overrides=("judge.model=own", "judge.samples=3", "dpo.beta=0.2"))
    for method, stage in (("sft", "rows"), ("dpo", "pairs")):
        named = by_name(make_chain(find_row(f"qwen3_4b/medical/{method}"), options))
        assert given(named[stage], "--judge") == "http://127.0.0.1:8000/v1"
        assert given(named[stage], "--judge-model") == "own"
        assert given(named[stage], "--judge-set") == "samples=3"
        assert "dpo.beta=0.2" in named["train"].argv and "dpo.beta=0.2" not in named[stage].argv


@pytest.mark.skipif(
    importlib.util.find_spec("herl_megatron.commands.demonstrations") is None,
    reason="there is no `herl data sft` in this version",
)
@pytest.mark.parametrize("name", ["if/sft", "medical/sft", "if/dpo", "medical/dpo"])
def test_herl_data_takes_the_commands_that_make_rows(
    name: str, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its own parser, up to files that are not there."""
    monkeypatch.chdir(tmp_path)
    options = asked(configs, overrides=("judge.samples=3",))
    named = by_name(make_chain(find_row(f"qwen3_4b/{name}"), options))
    stage = named.get("rows") or named["pairs"]
    main = {"data": data.main, "pairs": pairs.main}[stage.argv[0]]
    assert main(list(stage.argv[1:])) == 2
    said = capsys.readouterr().err
    assert "usage:" not in said and ("samples_qwen3_4b" in said or "data/rar" in said), said


def test_pairs_reads_what_it_is_given(configs: Path, tmp_path: Path) -> None:
    """`herl pairs` takes these very words; the samples are not there."""
    stage = by_name(make_chain(find_row("qwen3_4b/if/dpo"), asked(configs)))["pairs"]
    assert pairs.main(list(stage.argv[1:])) == 2


def test_the_released_medical_reward_is_one_of_the_rows(configs: Path) -> None:
    row = find_row("qwen2.5_7b/medical/herl")
    released = by_name(make_chain(row, asked(configs)))["data_medical"]
    assert given(released, "--aggregation") == "herl_reference"
    assert given(released, "--out") == "data/rar_reference"
    if "paper" in PRESETS:
        other = by_name(make_chain(row, asked(configs, preset="paper")))["data_medical"]
        assert "--aggregation" not in other.argv and given(other, "--out") == "data/rar"


def test_what_is_asked_for_reaches_its_stages(configs: Path) -> None:
    options = asked(
        configs,
        model="Qwen/Qwen2.5-7B-Instruct",
        inputs={"ifeval": "my/ifeval.jsonl"},
        overrides=("train.steps=7", "judge.model=own"),
        evaluation=("judge.model=grader-2",),
    )
    named = by_name(make_chain(find_row("qwen2.5_7b/if/herl"), options))
    train, evaluation = loaded(named["train"]), loaded(named["eval_writingbench"])
    assert (train.train.steps, train.judge.model) == (7, "own")
    assert train.model.path == "Qwen/Qwen2.5-7B-Instruct"
    assert evaluation.judge.model == "grader-2" and evaluation.model.path.endswith("train/policy")
    assert given(named["data_ifeval"], "--input") == "my/ifeval.jsonl"
    samples = by_name(make_chain(find_row("qwen2.5_7b/if/sft"), options))["samples"]
    assert loaded(samples).judge.model == "own" and "train.steps=7" not in samples.argv
    base = by_name(make_chain(find_row("qwen2.5_7b/base"), options))["eval_ifeval"]
    assert loaded(base).model.path == "Qwen/Qwen2.5-7B-Instruct"


def test_an_evaluation_is_the_same_for_every_row(configs: Path) -> None:
    """But for the model and its folder: the numbers of a column compare."""
    seen = []
    for name in ("qwen2.5_7b/base", "llama3.2_3b/if/he", "qwen3_4b/if/sft"):
        evaluation = by_name(make_chain(find_row(name), asked(configs)))["eval_ifbench"]
        seen.append(loaded(evaluation).model_dump(exclude={"run", "model"}))
    assert seen == [seen[0]] * 3


def test_data_sets_are_known_to_herl_data() -> None:
    origins = {**TRAINING, **EVALUATION}
    assert {*TRAINING} == {*TASKS}
    assert {*EVALUATION} == {name for listed in TASKS.values() for name in listed}
    for origin in origins.values():
        words = [origin.source, "--input", origin.place, *origin.options, "--out", "x"]
        assert data.parse_arguments(words).source == origin.source
        assert origin.fetched in origin.fetch and (origin.url or "/" in origin.place)


@pytest.mark.parametrize("name", EVALUATION)
def test_a_benchmarks_file_names_the_same_command(name: str, configs: Path) -> None:
    """In its header, for who prepares it by hand; a stand-in has none."""
    text = (configs / "benchmarks" / f"{name}.yaml").read_text(encoding="utf-8")
    stage = by_name(make_chain(find_row("qwen3_4b/base"), asked(configs)))[f"data_{name}"]
    said = [line for line in text.splitlines() if line.startswith("# Data: ")]
    assert said in ([], [f"# Data: {stage.command}"])


def test_models_are_those_of_the_configurations() -> None:
    for name, title in MODELS.items():
        text = (ROOT / "configs/models" / f"{name}.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["model"]["path"].rpartition("/")[2] == title


@pytest.mark.parametrize(
    "text", ["runs/x", "a b", "true", "1.5", "${model.path}", "x: y", "C#", "", "/a/b-c_d.jsonl"]
)
def test_a_setting_is_read_back_as_the_text_that_it_was(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {steps: 1}\n")
    assert load_config(tmp_path / "c.yaml", [setting("run.dir", text)]).run.dir == text


def test_printing_says_what_is_missing_and_runs_nothing(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = ["qwen2.5_7b/if/herl", "--print", "--configs", str(configs), "hindsight.alpha=0.1"]
    assert reproduce.main(words) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if not line.startswith("#")]
    assert len(lines) == 11 - 1 and all(line.startswith("herl ") for line in lines)
    assert "hindsight.alpha=0.1" in lines[1]
    assert "hf download Qwen/Qwen2.5-7B-Instruct --local-dir models/Qwen2.5-7B-Instruct" in said
    assert "hf download --repo-type dataset sastpg/HIR-16K --local-dir downloads/HIR-16K" in said
    assert "--input if=downloads/HIR-16K" in said
    assert "curl -fL --create-dirs -o downloads/muldimif_test.json https://raw." in said
    assert list(tmp_path.iterdir()) == []
