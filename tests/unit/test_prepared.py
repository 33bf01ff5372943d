"""`prepare`: what it resolves, and what is refused that it did not give."""

from __future__ import annotations

import copy
import datetime
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

import herl_megatron
from herl_megatron.cli import app
from herl_megatron.config.load import ConfigError, load_config, override, save_resolved
from herl_megatron.config.schema import Config
from herl_megatron.files.run_files import write_run_file
from herl_megatron.prepared import Command, PreparedConfig, check, prepare, require_prepared
from tests.limits import HANG_S
from tests.toy_copies import copy_toy_task
from tests.unit.config.hub_cache import COMMIT, fill_cache, use_cache

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs/quickstart_cpu.yaml"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    copy_toy_task(folder, seed=0, train_prompts=16, heldout_prompts=4, sft_rows=4)
    return folder


@pytest.fixture
def overrides(toy: Path, tmp_path: Path) -> list[str]:
    return [
        f"model.path={toy}/model", f"data.train={toy}/train.jsonl",
        f"data.eval={toy}/heldout.jsonl", f"sft.data={toy}/sft.jsonl", f"run.dir={tmp_path}/runs",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "sft", "eval", "improve"])
def test_a_configuration_without_switches_is_what_the_files_say(
    overrides: list[str], command: Command
) -> None:
    if command == "sft":
        overrides = [*overrides, "sft.max_tokens=256"]
    prepared = prepare(QUICKSTART, overrides, command=command)
    assert prepared == load_config(QUICKSTART, overrides)
    assert (prepared.command, prepared.run.name) == (command, "herl")


def test_epochs_become_the_steps_that_the_run_and_its_resume_have(
    overrides: list[str], tmp_path: Path
) -> None:
    """16 prompts, 5 a step, 1.5 times: 4.8 steps. 4 rows to fine-tune on, 3 a step, twice: 2.7."""
    sizes = ["train.prompts_per_step=5", "train.prompts_per_optimizer_step=5"]
    prepared = prepare(QUICKSTART, [*overrides, *sizes, "train.steps=null", "train.epochs=1.5"])
    assert (prepared.train.step_count, prepared.train.epochs) == (5, None)
    assert prepared == prepare(QUICKSTART, [*overrides, *sizes, "train.steps=5"])
    save_resolved(prepared, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == prepared
    sft = ["sft.max_tokens=256", "sft.rows_per_step=3", "sft.epochs=2"]
    assert prepare(QUICKSTART, [*overrides, *sft], command="sft").sft.step_count == 3
    with pytest.raises(ConfigError, match=r"train\.steps is 40 and train\.epochs is 1\.5"):
        prepare(QUICKSTART, [*overrides, "train.steps=40", "train.epochs=1.5"])
    assert prepare(QUICKSTART, [*overrides, *sizes, "train.epochs=1.5"]) == prepared
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a"}\n{"id":\n')
    given = [*overrides, "train.steps=null", "train.epochs=1", f"data.train={rows}"]
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: "):
        prepare(QUICKSTART, given)


def test_a_date_in_the_chat_template_is_that_of_the_runs_start(
    toy: Path, overrides: list[str], tmp_path: Path
) -> None:
    shutil.copytree(toy / "model", tmp_path / "model")
    template = tmp_path / "model/chat_template.jinja"
    template.write_text("{{ strftime_now('%Y') }}" + template.read_text())
    overrides = [*overrides, f"model.path={tmp_path}/model"]
    begun = prepare(QUICKSTART, overrides)
    assert begun.data.template_date == datetime.date.today().isoformat()
    given = prepare(QUICKSTART, [*overrides, "data.template_date=2025-01-02"])
    assert given.data.template_date == "2025-01-02"
    run = tmp_path / "runs" / begun.run.name
    run.mkdir(parents=True)
    save_resolved(given, run / "config.yaml")
    write_run_file(run, {"command": "train"})
    resumed = prepare(QUICKSTART, [*overrides, "run.resume=true"])
    assert resumed.data.template_date == "2025-01-02"
    with pytest.raises(ConfigError, match=r"data\.template_date.*a day is written YYYY-MM-DD"):
        prepare(QUICKSTART, [*overrides, "data.template_date=today"])


RELEASED = {
    "behavior": "old", "train_context": "experience", "chat_template": False, "replace": "random",
    "no_qualified": "copy_best", "join_cut": True, "off_policy_loss": "shaped",
    "temperature": 0.9, "top_p": 0.8,
}  # fmt: skip


@pytest.mark.parametrize("command", ["train", "improve"])
def test_reference_compat_is_resolved_and_saved(
    overrides: list[str], tmp_path: Path, command: Command
) -> None:
    asked = ["hindsight.reference_compat=true", "rollout.temperature=0.9", "rollout.top_p=0.8"]
    prepared = prepare([QUICKSTART], [*overrides, *asked], command=command)
    assert prepared.hindsight.model_dump(include=set(RELEASED)) == RELEASED
    plain = load_config(QUICKSTART, [*overrides, *asked])
    assert plain.hindsight.behavior == "sampler" and prepared != plain
    save_resolved(prepared, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert prepared == again and again == prepared and type(again) is Config
    assert prepare(tmp_path / "config.yaml", command=command) == prepared


def test_what_contradicts_reference_compat_is_refused(overrides: list[str]) -> None:
    with pytest.raises(ValueError, match="hindsight.replace is 'worst'.*needs 'random'"):
        prepare(QUICKSTART, [*overrides, "hindsight.reference_compat=true",
                             "hindsight.replace=worst"])  # fmt: skip


def test_all_problems_of_a_command_come_at_once(overrides: list[str]) -> None:
    asked = [*overrides, "model.path=", "data.eval=", "eval.samples_per_prompt=2"]
    with pytest.raises(ConfigError) as caught:
        prepare(QUICKSTART, asked, command="eval")
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        "data.eval is empty",
        "model.path is empty",
    ]


def test_files_merge_and_nothing_is_written(overrides: list[str], tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("train: {steps: 7}\n")
    prepared = prepare([QUICKSTART, more], [*overrides, "run.name=both"])
    assert (prepared.train.steps, prepared.run.name) == (7, "both")
    assert not (tmp_path / "runs").exists() and not ray.is_initialized()


def test_score_needs_no_model() -> None:
    prepared = prepare((), ["scoring.answer_after=</think>", "judge.samples=3"], command="score")
    assert (prepared.scoring.answer_after, prepared.judge.samples) == ("</think>", 3)
    assert prepared.model.path == ""
    with pytest.raises(ConfigError, match="judge.model is empty"):
        prepare((), ["judge.base_url=http://here:1/v1"], command="score")


def test_score_takes_the_sections_of_any_run() -> None:
    assert prepare(QUICKSTART, command="score").scoring == load_config(QUICKSTART).scoring


FUNCTIONS: list[tuple[Command, str]] = [
    ("train", "train"), ("sft", "sft"), ("dpo", "dpo"), ("eval", "evaluate"),
    ("improve", "improve"), ("score", "score"),
]  # fmt: skip


def call(name: str, config: Any) -> Any:
    more = ("rows.jsonl", "out.jsonl") if name == "score" else ()
    return getattr(herl_megatron, name)(config, *more)


@pytest.mark.parametrize(("command", "name"), FUNCTIONS)
def test_each_function_takes_only_what_was_prepared_for_it(
    overrides: list[str], command: Command, name: str
) -> None:
    loaded = load_config(QUICKSTART, overrides)
    fix = re.escape(f"{name} takes what prepare(files, overrides, command='{command}') returns")
    with pytest.raises(ValueError, match=f"this Config was not prepared: {fix}"):
        call(name, loaded)
    other: Command = "eval" if command != "eval" else "train"
    with pytest.raises(ValueError, match=f"was prepared for '{other}': {fix}"):
        call(name, prepare(QUICKSTART, overrides, command=other))
    made = PreparedConfig(**loaded.model_dump())
    with pytest.raises(ValueError, match=f"was changed after prepare: {fix}"):
        call(name, made)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("change", "command"),
    [
        (lambda c: c.model_copy(), "train"),
        (lambda c: c.model_copy(deep=True), "train"),
        (copy.copy, "train"),
        (copy.deepcopy, "train"),
        (lambda c: pickle.loads(pickle.dumps(c)), "train"),
        (lambda c: c.model_copy(update={"train": c.train.model_copy(update={"steps": 9})}), None),
        (lambda c: PreparedConfig.model_validate(c.model_dump()), None),
    ],
)
def test_copies(
    overrides: list[str],
    change: Callable[[PreparedConfig], PreparedConfig],
    command: Command | None,
) -> None:
    prepared = prepare(QUICKSTART, overrides)
    made = change(prepared)
    assert (made.command, prepared.command) == (command, "train")
    if command is None:
        with pytest.raises(ValueError, match="changed after prepare"):
            require_prepared(made, "train")
    else:
        require_prepared(made, "train")
        assert made == prepared and made.model_fields_set == prepared.model_fields_set


def test_a_change_inside_is_seen() -> None:
    """`judge.extra_body` is a mapping, which freezes nothing; `copy` is pydantic's old way."""
    prepared = prepare((), ["judge.extra_body.min_p=0.1"], command="score")
    judge = prepared.judge.model_copy(update={"samples": 9})
    with pytest.warns(DeprecationWarning):
        copied = prepared.copy(update={"judge": judge})
    prepared.judge.extra_body["seed"] = 2  # which `prepare` refuses
    for changed in (prepared, copied):
        assert changed.command is None
        with pytest.raises(ValueError, match="changed after prepare"):
            require_prepared(changed, "score")


@pytest.mark.parametrize(
    ("command", "said"),
    [("evaluate", "did you mean 'eval'"), ("scor", "it is one of"), (None, "it is one of")],
)
def test_a_command_that_there_is_not(command: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"there is no command {command!r} to prepare for; {said}"):
        prepare((), command=command)


def test_a_mode_that_there_is_not_scores_nothing(tmp_path: Path) -> None:
    mode: Any = "losse"
    prepared = prepare((), command="score")
    with pytest.raises(ValueError, match="mode is 'losse'; it is 'strict' or 'loose'"):
        herl_megatron.score(prepared, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", mode=mode)
    assert list(tmp_path.iterdir()) == []


def test_equality_is_of_values(overrides: list[str]) -> None:
    train, other = prepare(QUICKSTART, overrides), prepare(QUICKSTART, overrides, command="eval")
    loaded = load_config(QUICKSTART, overrides)
    assert train == other == loaded and loaded == train
    assert train != prepare(QUICKSTART, [*overrides, "train.steps=3"]) and train != "train"
    assert train.model_dump() == loaded.model_dump()


SHIPPED = sorted((ROOT / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_line_runs_what_prepare_gives(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models and data of the shipped files are not here, so nothing is checked against them."""
    ran: list[Config] = []

    async def job(config: Config) -> None:
        ran.append(config)

    monkeypatch.setattr("herl_megatron.commands.train.train", job)
    monkeypatch.setattr(
        "herl_megatron.config.validate.validate", lambda config, purpose, further: None
    )
    monkeypatch.setattr("herl_megatron.prepared.in_steps", lambda config, command: config)
    monkeypatch.setattr("herl_megatron.cluster.session.check_address", lambda cluster: None)
    result = CliRunner().invoke(app, ["train", str(path), "run.seed=5"])
    assert result.exit_code == 0, result.output
    prepared = prepare([path], ["run.seed=5"])
    assert ran == [prepared]
    loaded = load_config(path, ["run.seed=5"]).model_dump()
    if loaded["hindsight"]["reference_compat"]:
        drawn = {key: loaded["rollout"][key] for key in ("temperature", "top_p")}
        loaded["hindsight"] |= RELEASED | drawn
    assert prepared.model_dump() == loaded


@pytest.mark.parametrize(
    "text",
    ["", "a b", "</think>", "${run.name}", r"\${x}", r"\\${x}", "x\\", "010", "1:30", "null",
     "true", "it's \"so\": {a, [b]}", "\u00e9\n\U0001f989", "=", "#", "- a", "$", "{"],
)  # fmt: skip
def test_an_override_gives_the_very_text(text: str) -> None:
    prepared = prepare(
        (),
        [override("scoring.answer_after", text), override("scoring.check_modules", [text, "b"])],
        command="score",
    )
    assert prepared.scoring.answer_after == text
    assert prepared.scoring.check_modules == (text, "b")


def test_an_override_gives_the_very_number() -> None:
    asked = [override("scoring.check_timeout_s", 0.001), override("scoring.workers", 12)]
    scoring = prepare((), asked, command="score").scoring
    assert (scoring.check_timeout_s, scoring.workers) == (0.001, 12)


def test_the_check_alone_marks_what_was_loaded(overrides: list[str]) -> None:
    loaded = load_config(QUICKSTART, overrides)
    assert check(loaded, command="train").command == "train"


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, herl_megatron\n"
        "heavy = ('torch', 'ray', 'pydantic', 'omegaconf', 'transformers', 'vllm')\n"
        "print([n for n in heavy if n in sys.modules])\n"
        "from herl_megatron import prepare, score, train\n"
        "prepare((), command='score')\n"
        "print([n for n in ('torch', 'ray', 'transformers', 'vllm') if n in sys.modules])\n"
        "import herl_megatron.commands.train\n"
        "from herl_megatron import train as again\n"
        "print(again is train and callable(train), sorted(set(herl_megatron.__all__) - "
        "set(dir(herl_megatron))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG_S
    )
    assert done.stdout.splitlines() == ["[]", "[]", "True []"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        herl_megatron.trian  # noqa: B018


def test_a_name_on_the_hub_becomes_its_folder_once_and_loads_again(
    toy: Path, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = use_cache(tmp_path / "cache", monkeypatch)
    snapshot = fill_cache(cache, "org/tiny", model=toy / "model")
    prepared = prepare(QUICKSTART, [*overrides, "model.path=org/tiny"])
    assert (prepared.model.path, prepared.model.hub) == (str(snapshot), f"org/tiny@{COMMIT}")
    save_resolved(prepared, saved := tmp_path / "config.yaml")
    assert prepare(saved) == prepared
    other = prepare(saved, [f"model.path={toy}/model"])  # what stood there is about another folder
    assert (other.model.path, other.model.hub) == (f"{toy}/model", "")
    moved = use_cache(tmp_path / "moved", monkeypatch)
    shutil.rmtree(cache)
    again = fill_cache(moved, "org/tiny", model=toy / "model")
    assert prepare(saved).model.path == str(again)


def test_other_problems_come_before_a_model_is_fetched(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = [*overrides, "model.path=org/tiny", "train.prompts_per_optimizer_step=5"]
    with pytest.raises(ConfigError, match="prompts_per_optimizer_step") as caught:
        prepare(QUICKSTART, wrong)
    assert "org/tiny" not in str(caught.value)
    with pytest.raises(ConfigError, match="model.path: 'org/tiny' .* hf download org/tiny "):
        prepare(QUICKSTART, wrong[:-1])
    config = load_config(QUICKSTART, wrong[:-1])
    with pytest.raises(ConfigError, match="a run would fetch it, as `hf download org/tiny` does"):
        check(config, command="train", fetch=False)
