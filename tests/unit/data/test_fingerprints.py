"""What a run reads: whatever could change a result changes its own fingerprint, and only that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from herl_megatron.config.hooks import Hook, load_hook
from herl_megatron.config.schema import Config, JudgeConfig, ModelConfig, ScoringConfig
from herl_megatron.data.canonical_rows import prompt_from_row
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.fingerprints import fingerprints
from herl_megatron.rubrics.checks.registry import load_check_modules, module_file
from herl_megatron.rubrics.checks.sources import source_hash
from herl_megatron.types import Prompt
from tests.toy_copies import copy_toy_task

MODULE = "checks_of_the_fingerprint_test"
PACKAGE = "package_of_checks.one"
CHECK = (
    "from herl_megatron.rubrics.checks.registry import register\n"
    "@register('{name}', description='x')\n"
    "def check(response: str) -> bool:\n    return True\n"
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    copy_toy_task(folder, seed=0, train_prompts=2, heldout_prompts=1, sft_rows=1)
    return folder / "model"


def row(content: str = "Write.", weight: float = 1.0, **more: object) -> Prompt:
    criterion = {"id": "c", "kind": "rule", "check": "ifeval/punctuation:no_comma"}
    return prompt_from_row(
        {
            "id": "p",
            "messages": [{"role": "user", "content": content}],
            "rubric": {"criteria": [criterion | {"weight": weight}]},
        }
        | more
    )


def taken(
    model: Path, tmp_path: Path, *, train: tuple[Prompt, ...] = (row(),), **sections: Any
) -> dict[str, str]:
    config = Config(model=ModelConfig(path=str(model)), **sections)
    tokenizer = ChatTokenizer(str(model))
    return fingerprints(
        config.model,
        tokenizer,
        train=train,
        held_out=(row("Held out."),),
        check_modules=config.scoring.check_modules,
        text_files={"judge.prompt": config.judge.prompt},
    )


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


@pytest.mark.parametrize(
    "other",
    [
        (row("Write!"),),
        (row(weight=2.0),),
        (row(reference_answer="an answer"),),
        (row(extra={"a": 1}),),
        (row(source="s"),),
        (row(), row("Again.", id="q")),
    ],
)
def test_whole_rows_count(toy: Path, tmp_path: Path, other: tuple[Prompt, ...]) -> None:
    base = taken(toy, tmp_path)
    assert changed(base, taken(toy, tmp_path, train=other)) == {"data.train"}
    assert base["data.train"].startswith("1 rows ")


def test_the_order_of_rows_counts_and_their_layout_in_the_file_does_not(
    toy: Path, tmp_path: Path
) -> None:
    pair = (row(), row("Again.", id="q"))
    both = [taken(toy, tmp_path, train=rows) for rows in (pair, pair[::-1])]
    assert changed(*both) == {"data.train"}
    assert taken(toy, tmp_path) == taken(toy, tmp_path)


def json_edit(name: str, key: str, value: object) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        values = json.loads((model / name).read_text())
        values[key] = value
        (model / name).write_text(json.dumps(values, indent=7))

    return edit


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (json_edit("tokenizer.json", "normalizer", {"type": "NFKC"}), {"tokenizer of model.path"}),
        (json_edit("config.json", "rope_theta", 5.0), {"config.json of model.path"}),
        (json_edit("config.json", "transformers_version", "9"), set()),
        (
            lambda model: (model / "generation_config.json").write_text('{"eos_token_id": [5, 6]}'),
            {"tokenizer of model.path"},
        ),
        (json_edit("config.json", "_name_or_path", "x"), set()),
        (lambda model: (model / "README.md").write_text("new"), set()),
        (
            lambda model: (model / "chat_template.jinja").write_text(
                (model / "chat_template.jinja").read_text() + "{# new #}"
            ),
            {"chat template of model.path"},
        ),
    ],
)
def test_a_models_files_count_by_what_they_say(
    toy: Path, tmp_path: Path, edit: Callable[[Path], None], names: set[str]
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(toy, model)
    before = taken(model, tmp_path)
    edit(model)
    assert changed(before, taken(model, tmp_path)) == names


def test_weights_count_for_those_who_read_them_again(toy: Path, tmp_path: Path) -> None:
    import shutil

    def taken_with(model: Path) -> dict[str, str]:
        return fingerprints(
            ModelConfig(path=str(model)),
            ChatTokenizer(str(model)),
            train=(),
            held_out=(row(),),
            check_modules=(),
            text_files={"judge.prompt": ""},
            weights=True,
        )

    model = tmp_path / "model"
    shutil.copytree(toy, model)
    before = taken_with(model)
    assert before == taken_with(toy)
    weights = load_file(model / "model.safetensors")
    assert len(weights) > 20
    for name in weights:  # a single tensor that was trained further
        other = weights | {name: weights[name] * 1.01}
        save_file(other, model / "model.safetensors")
        assert changed(before, taken_with(model)) == {"weights of the model"}, name


def test_source_of_checks_and_the_judges_prompt_count(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / f"{MODULE}.py"
    source.write_text(CHECK.format(name="mine/fingerprint") + "X = 1\n")
    load_check_modules([MODULE])
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("one")
    settings: dict[str, Any] = {
        "scoring": ScoringConfig(check_modules=(MODULE,)),
        "judge": JudgeConfig(prompt=str(prompt)),
    }
    before = taken(toy, tmp_path, **settings)
    source.write_text(CHECK.format(name="mine/fingerprint") + "X = 2\n")
    name = f"source of scoring.check_modules {MODULE}"
    assert changed(before, taken(toy, tmp_path, **settings)) == {name}
    prompt.write_text("two")
    assert changed(before, taken(toy, tmp_path, **settings)) == {name, "judge.prompt"}
    moved = tmp_path / "elsewhere.txt"
    moved.write_text("one")
    source.write_text(CHECK.format(name="mine/fingerprint") + "X = 1\n")
    settings["judge"] = JudgeConfig(prompt=str(moved))
    assert taken(toy, tmp_path, **settings) == before


def test_source_of_a_hook_counts(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "hook_of_the_fingerprint_test.py"
    source.write_text("def loss(inputs):\n    return inputs\n")
    hook = load_hook("algorithm.loss", "hook_of_the_fingerprint_test:loss")

    def taken_with(*hooks: Hook) -> dict[str, str]:
        return fingerprints(
            ModelConfig(path=str(toy)),
            ChatTokenizer(str(toy)),
            train=(row(),),
            held_out=(),
            check_modules=(),
            text_files={},
            hooks=hooks,
        )

    name = "source of algorithm.loss hook_of_the_fingerprint_test:loss"
    before = taken_with(hook)
    assert changed(taken_with(), before) == {name}
    source.write_text("def loss(inputs):\n    return -inputs\n")
    assert changed(before, taken_with(hook)) == {name}


def test_what_a_check_imports_from_beside_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "checks_with_a_helper"
    (tmp_path / "helper_of_the_checks.py").write_text("Y = 1\n")
    imports = "from helper_of_the_checks import Y\nimport json\n"
    (tmp_path / f"{name}.py").write_text(CHECK.format(name="mine/helped") + imports)
    package = tmp_path / "package_of_checks"
    package.mkdir()
    one = CHECK.format(name="mine/packed")
    for file, text in (("__init__", ""), ("one", f"{one}A = 1\n"), ("two", "")):
        (package / f"{file}.py").write_text(text)
    (package / "words.txt").write_text("a\n")
    (tmp_path / "stranger.py").write_text("")
    load_check_modules([name, PACKAGE])
    seen = [source_hash(name, module_file(name)), source_hash(PACKAGE, module_file(PACKAGE))]
    for file, text, which in (
        ("helper_of_the_checks.py", "Y = 2\n", 0),
        ("package_of_checks/two.py", "B = 1\n", 1),
        ("package_of_checks/words.txt", "b\n", 1),
        ("stranger.py", "Z = 1\n", None),
    ):
        (tmp_path / file).write_text(text)
        now = [source_hash(name, module_file(name)), source_hash(PACKAGE, module_file(PACKAGE))]
        assert [old != new for old, new in zip(seen, now, strict=True)] == [
            which == 0, which == 1
        ], file  # fmt: skip
        seen = now
    (package / "one.py").write_text(one)  # moved between files
    (package / "two.py").write_text("A = 1\nB = 1\n")
    assert source_hash(PACKAGE, module_file(PACKAGE)) != seen[1]
