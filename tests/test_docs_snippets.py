"""Every snippet of the documentation: commands and flags exist, keys exist, code compiles, rows are
rows. What a command then does is tested where the command is."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.decides import keys
from herl_megatron.config.load import load_config, split_arguments
from herl_megatron.data.canonical_rows import prompt_from_row
from herl_megatron.observability.rollout_log import group_record, write_rollouts
from herl_megatron.rubrics.checks.registry import forget_user_checks, load_check_modules, run_check
from herl_megatron.types import Criterion, Verdict
from tests.pages import ROOT, Block, blocks
from tests.unit.hindsight.groups import make_group

QUICKSTART = ROOT / "configs/quickstart_cpu.yaml"
FOREIGN = {"source", "kill", "vllm", "sbatch", "scancel", "cd", "py-spy", "wandb"}
"""Programs that are not this project's; what they are given is looked at where it is."""
OWN_CHECKS = ("mine/", "my/")
TAKES_FILES = ("train", "sft", "dpo", "eval", "improve", "plan", "doctor", "config show")


def commands(block: Block) -> list[list[str]]:
    """The block's commands in words, without comments and leading assignments."""
    text = block.text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, w in enumerate(words) if w in ("&&", ";", "|")), len(words))
            one, words = words[:end], words[end + 1 :]
            while one and re.match(r"[A-Z_]+=", one[0]):
                one = one[1:]
            if one:
                found.append(one)
    return found


SHELL = [(block.page, words) for block in blocks("bash", "sh") for words in commands(block)]


def is_placeholder(word: str) -> bool:
    """`CONFIG`, `RUN_A`, or a path that a run writes."""
    return bool(re.fullmatch(r"[A-Z_]+(\.\w+)?(\.\.\.)?", word)) or word.startswith("runs/")


def check_settings(words: list[str]) -> None:
    """Files exist and merge; every key that is overridden exists and takes the value."""
    files, overrides = split_arguments([word for word in words if not word.endswith("...")])
    ours = [ROOT / file for file in files if not is_placeholder(str(file))]
    load_config(ours or [QUICKSTART], overrides)


@cache
def help_of(command: str) -> str:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def check_herl(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    rest = words[1:]
    while isinstance(command, TyperGroup):
        path, rest = [*path, rest[0]], rest[1:]
        command = command.commands.get(path[-1])
        assert command is not None, f"herl {' '.join(path)} is no command"
    name = " ".join(path)
    if rest == ["--help"]:
        return
    if command.context_settings.get("ignore_unknown_options"):  # reads its own arguments
        makes = name == "data" and rest[0] in ("sft", "pairs")  # with options of their own
        text = help_of(f"data {rest[0]}" if makes else name)
        missing = [word for word in rest if word.startswith("--") and word not in text]
        assert missing == [], f"herl {name} has no {missing}"
        if name == "data" and not makes:
            assert rest[0] in text, f"herl data knows no {rest[0]}"
        return
    context = command.make_context(name, list(rest))
    if name in TAKES_FILES:
        if settings := context.params["settings"]:
            check_settings(settings)
    elif name == "config explain":
        if not is_placeholder(context.params["key"]):
            assert CliRunner().invoke(app, ["config", "explain", rest[0]]).exit_code == 0
    elif name in ("config diff", "config migrate"):
        for word in rest:
            assert is_placeholder(word) or (ROOT / word).is_file(), word


def check_script(path: str, rest: list[str]) -> None:
    """The script exists, its text has every flag, and it is given keys that exist."""
    script = ROOT / path
    assert script.is_file(), f"{path} does not exist"
    text = script.read_text(encoding="utf-8")
    for word in rest:
        if word.startswith("--"):
            assert f'"{word}"' in text or f"{word})" in text or f"{word} " in text, f"{path} {word}"
        elif word.startswith(("configs/", "tests/", "docs/")):
            assert (ROOT / word).exists(), word
    overrides = [word for word in rest if re.match(r"[a-z]+\.\w+=", word)]
    load_config(QUICKSTART, overrides)


def check_pip(rest: list[str]) -> None:
    sources = [ROOT / "setup.py", *(ROOT / "tools").glob("*.txt"), ROOT / "tools/_venv.sh"]
    known = "\n".join(path.read_text(encoding="utf-8") for path in sources).lower()
    for word in rest:
        for extra in re.findall(r"\.\[([\w,]+)\]", word):
            assert all(f'"{one}":' in known for one in extra.split(",")), word
        if re.fullmatch(r"[\w-]+==[\w.]+", word):
            name, _, version = word.lower().partition("==")
            assert word.lower() in known or f'{name}="{version}' in known, word


@pytest.mark.parametrize(("page", "words"), SHELL, ids=lambda value: str(value)[:70])
def test_command_exists(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *rest = words
    if program == "herl":
        check_herl(words)
    elif program == "pip":
        check_pip(rest)
    elif program in ("bash", "sbatch"):
        script = next(word for word in rest if word.endswith((".sh", ".sbatch")))
        check_script(script, [w for w in rest[rest.index(script) + 1 :] if not is_placeholder(w)])
    elif re.fullmatch(r"(.*/)?python(3\.11)?", program):
        if rest[0] == "-m":
            assert rest[1] in ("pytest", "venv") or importlib.util.find_spec(rest[1]), rest[1]
            for word in rest[2:]:
                assert not word.startswith("tests/") or (ROOT / word).exists(), word
        else:
            check_script(rest[0], rest[1:])
    else:
        assert program in FOREIGN | {".venv/bin/ruff", ".venv/bin/mypy"}, f"{page}: {program}"


@pytest.mark.parametrize(
    "line",
    [
        "herl trian configs/quickstart_cpu.yaml",
        "herl score rows.jsonl --out scores.jsonl --no-such-flag 1",
        "herl data hir --input x --out y --no-such-flag",
        "herl data no_such_source --input x --out y",
        "herl train configs/no_such_file.yaml",
        "herl train CONFIG hindsight.alpa=1",
        "herl config diff configs/quickstart_cpu.yaml configs/no_such_file.yaml",
    ],
)
def test_what_is_wrong_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError, TyperException)):
        check_herl(shlex.split(line))


def test_a_flag_that_a_script_does_not_have_is_found() -> None:
    with pytest.raises(AssertionError):
        check_script("tools/bench/bench_step.py", ["--no-such-flag"])
    with pytest.raises(AssertionError):
        check_pip(["torch==1.0"])
    assert len(SHELL) > 50


def test_yaml_has_keys_that_exist(tmp_path: Path) -> None:
    sections = {key.path.partition(".")[0] for key in keys()}
    seen = 0
    for block in blocks("yaml"):
        values = yaml.safe_load(block.text)
        if not set(values) <= sections:
            assert block.page == "docs/planning.md"  # GPUs of one's own: tests/unit/test_gpus.py
            continue
        path = tmp_path / "config.yaml"
        path.write_text(block.text)
        load_config(path)
        seen += 1
    assert seen >= 3


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_python_compiles_and_imports_what_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("herl_megatron"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_rows_are_rows() -> None:
    seen = 0
    for block in blocks("json", "jsonl"):
        for line in block.text.splitlines():
            row: dict[str, Any] = json.loads(line)
            checks = [c.get("check", "") for c in row.get("rubric", {}).get("criteria", [])]
            if checks and not any(check.startswith(OWN_CHECKS) for check in checks):
                given = {k: v for k, v in row.items() if k not in ("response", "responses")}
                assert prompt_from_row(given).id == row["id"]
                seen += 1
    assert seen >= 2


def test_every_block_says_its_language() -> None:
    assert [block.page for block in blocks() if not block.language] == []


def test_the_debugging_page_reads_a_rollout_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = (block.text for block in blocks("python") if block.page == "docs/debugging.md")
    file = tmp_path / "runs/quickstart/herl/rollouts/step_000010.jsonl"
    write_rollouts(file, [group_record(make_group([0.25, None]))])
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/debugging.md", "exec"), {})
    assert capsys.readouterr().out == "p0 [0.25, None]\n"


def test_the_extending_pages_check_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet, _ = (block.text for block in blocks("python") if block.page == "docs/extending.md")
    (tmp_path / "polite.py").write_text(snippet)
    load_check_modules(["polite"], folder=str(tmp_path))
    criterion = Criterion("p", "rule", "mine/starts_politely", {"word": "Please"})
    assert run_check(criterion, " please, go on").verdict is Verdict.FOLLOWED
    assert run_check(criterion, "Go on, please").verdict is Verdict.NOT_FOLLOWED
    forget_user_checks()


def test_the_extending_pages_family_is_the_file() -> None:
    """All but the docstring and `from __future__`."""
    _, shown = (block.text for block in blocks("python") if block.page == "docs/extending.md")
    file = ROOT / "herl_megatron" / "models" / "families" / "glm4.py"
    wanted = ast.parse(file.read_text(encoding="utf-8")).body[2:]
    assert [ast.unparse(node) for node in ast.parse(shown).body] == list(map(ast.unparse, wanted))
