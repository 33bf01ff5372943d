"""`herl data|pairs|inspect|convert|verify`: the scripts in tools/ are the same, arguments and exit
codes pass through."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.decides import keys
from tests.unit.config.hub_cache import use_cache

ROOT = Path(__file__).parents[3]
SCRIPTS = {
    "data": "prepare_data",
    "pairs": "make_pairs",
    "inspect": "inspect_rollouts",
    "convert to-megatron": "convert_hf_to_megatron",
    "convert to-hf": "convert_megatron_to_hf",
    "verify": "verify_conversion",
}


@pytest.mark.parametrize("command", SCRIPTS)
def test_help_is_the_scripts(command: str) -> None:
    ours = CliRunner().invoke(app, [*command.split(), "--help"])
    assert ours.exit_code == 0 and ours.output.startswith(f"usage: herl {command} ")
    script = ROOT / "tools" / f"{SCRIPTS[command]}.py"
    theirs = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    assert theirs.stdout.split() == ours.output.split()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["pairs", "/no/such/run", "--out", "pairs.jsonl"], 2),
        (["inspect", "/no/such/run"], 2),
        (["data", "plain", "--input", "/no/such/file", "--out", "out"], 2),
        (["data", "no-such-source", "--input", "a", "--out", "out"], 2),
        (["convert", "to-hf", "--megatron", "/no/such/folder", "--out", "out"], 1),
        (["verify", "--hf", "/no/such/folder", "--megatron", "/no/such/folder"], 1),
    ],
)
def test_exit_codes_pass_through(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert list(tmp_path.iterdir()) == []


def test_what_the_package_says_names_commands_and_no_script() -> None:
    """A wheel has no tools/, and where it is installed nobody may have a clone."""
    pages = [*(ROOT / "herl_megatron").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]
    pages += [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    scripts = tuple(f"tools/{name}.py" for name in SCRIPTS.values())
    found = {
        f"{path.relative_to(ROOT)}: {script}"
        for path in pages
        for script in scripts
        if script in path.read_text(encoding="utf-8")
    }
    assert found == set()


def test_every_script_runs_the_package_beside_it(tmp_path: Path) -> None:
    """From any folder, installed or not, and not another one that happens to be installed."""
    decoy = tmp_path / "elsewhere/herl_megatron"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise SystemExit('another herl_megatron')")
    for script in (*SCRIPTS.values(), "make_toy_task"):
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / f"{script}.py", "--help"], cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(decoy.parent)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and "usage:" in done.stdout, (script, done.stderr)


def keys_in_help(command: str) -> set[str]:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return set(re.findall(r"^  (\w+\.\w+)  \(", result.output, re.MULTILINE))


def test_help_lists_the_keys_of_the_command_alone() -> None:
    every = {key.path for key in keys()}
    sections = {command: {path.partition(".")[0] for path in keys_in_help(command)}
                for command in ("train", "sft", "dpo", "eval", "improve", "score")}  # fmt: skip
    trains = {"run", "model", "data", "optimizer", "megatron", "cluster", "tracking"}
    samples = {"run", "model", "data", "rollout", "eval", "scoring", "judge", "cluster", "tracking"}
    trains |= {"checkpoint", "weight_sync", "parity"}
    assert sections == {
        "train": trains | samples | {"hindsight", "algorithm", "train"},
        "sft": trains | samples | {"sft"}, "dpo": trains | samples | {"dpo"},
        "eval": samples, "improve": samples | {"improve", "hindsight"}, "score": {"judge"},
    }  # fmt: skip
    train = keys_in_help("train")
    assert train == {path for path in every if path.partition(".")[0] in sections["train"]}
    for command in ("sft", "dpo"):
        fits = keys_in_help(command)
        assert {path for path in every if path.startswith("data.")} - fits == {"data.train"}
        assert fits - keys_in_help("eval") >= {"data.shuffle", f"{command}.eval_every"}, command
        sampled = {path for path in fits if path.startswith(("rollout.", "scoring.", "judge."))}
        assert sampled == {p for p in keys_in_help("eval") if p.startswith(("rollout.", "scoring.",
                                                                            "judge."))}  # fmt: skip
    not_evaluated = {"data.train", "data.shuffle", "rollout.temperature", "rollout.group_size"}
    assert not keys_in_help("eval") & not_evaluated
    assert {"data.eval", "data.max_prompt_tokens"} <= keys_in_help("eval") & keys_in_help("improve")


def test_help_of_what_looks_at_a_configuration_lists_its_keys() -> None:
    assert keys_in_help("doctor") == {key.path for key in keys()}
    assert keys_in_help("plan") == keys_in_help("train")


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output.startswith("herl_megatron 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (["convert", "to-megatron", "--hf", "org/none", "--out", "out"], 1, "--hf"),
        (["verify", "--hf", "org/none", "--megatron", "m"], 1, "--hf"),
        (["data", "plain", "--input", "rows.jsonl", "--out", "out", "--tokenizer", "org/none",
          "--max-prompt-tokens", "9"], 2, "--tokenizer"),
    ],
)  # fmt: skip
def test_a_name_on_the_hub_that_is_nowhere(
    arguments: list[str], code: int, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    use_cache(tmp_path / "cache", monkeypatch)
    Path("rows.jsonl").write_text('{"prompt": "Say it.", "rubric": ["It is short."]}\n')
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    said = result.output + capfd.readouterr().err
    assert f"hf download org/none --local-dir models/none; then give {key} models/none" in said
    assert not Path("out").exists()


def test_looking_at_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("model: {path: toy}\ntrain: {steps: 3}\n")
    Path("b.yaml").write_text("extends: [a.yaml]\ntrain: {steps: 4, eval_every: 0}\n")

    def said(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["config", *arguments])
        return result.exit_code, result.output

    assert said("show", "b.yaml", "train.steps=100") == (0, "model:\n  path: toy\n")
    assert said("diff", "a.yaml", "b.yaml") == (1, "train.steps: 3 -> 4\n")
    assert said("diff", "a.yaml", "a.yaml") == (0, "")
    composed = 'run.name: "a_b" -> "herl"\ntrain.steps: 4 -> 3\n'
    assert said("diff", "a.yaml,b.yaml", "a.yaml") == (1, composed)
    for nothing in ("", ","):
        code, output = said("diff", nothing, "a.yaml")
        assert code == 2 and "no configuration file is named" in output
    code, output = said("explain", "train.steps")
    assert code == 0 and output.startswith("train.steps: int | null, `100`; decides ")
    code, output = said("explain", "judge.extra_body.x")
    assert code == 2 and output == "error: judge.extra_body.x: unknown key\n"
