"""`herl score`: verdicts and totals by hand, going on after an interruption, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from herl_megatron.cli import app
from herl_megatron.commands.score.job import ScoreJob, _judge_keys
from herl_megatron.commands.score.output import ScoreFile
from herl_megatron.config.decides import keys_that_decide
from herl_megatron.config.schema import ScoringConfig
from herl_megatron.config.schema.base import Decides
from herl_megatron.data.responses import load_responses
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits
from tests.fake_judge import fake_judge
from tests.limits import HANG_S
from tests.unit.rubrics.check_cases import reference_rows
from tests.unit.score.score_cases import (
    NO_COMMA,
    ROWS,
    read_totals,
    row,
    says,
    score,
    scored,
    share,
    write,
)

ROOT = Path(__file__).parents[3]


def test_verdicts_and_totals_by_hand(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "scores.jsonl"
    totals = scored(write(tmp_path / "rows.jsonl", ROWS), out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line.pop("id") for line in lines] == ["a1", "a2", "b1"]
    assert all(line.pop("made_from") for line in lines)
    assert lines[0] == {
        "reward": 0.75,
        "status": "scored",
        "verdicts": [
            {"id": "comma", "verdict": "not_followed"},
            {"id": "title", "verdict": "followed"},
        ],
    }
    assert [entry["reward"] for entry in lines[2]["responses"]] == [0.0, 1.0]
    assert (totals["responses"], totals["scored"], totals["unscored"]) == (4, 4, 0)
    assert totals["mean_reward"] == pytest.approx((0.75 + 1 + 0 + 1) / 4)
    assert share(totals["prompt_level"]) == (2, 4)
    assert share(totals["instruction_level"]) == (4, 6)
    assert {name: share(part) for name, part in totals["per_check"].items()} == {
        "ifeval/punctuation:no_comma": (2, 4),
        "ifeval/detectable_format:title": (2, 2),
    }
    by_source = totals["by_source"]
    assert share(by_source["a"]["prompt_level"]) == (1, 2)
    assert share(by_source["b"]["prompt_level"]) == (1, 2)


def test_loose_takes_the_best_variant(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row("a", [NO_COMMA], response="Sure, here:\nOwls.")])
    assert scored(source, tmp_path / "strict.jsonl")["mean_reward"] == 0.0
    assert scored(source, tmp_path / "loose.jsonl", "--mode", "loose")["mean_reward"] == 1.0


def test_what_cannot_be_checked_is_left_out_and_said(tmp_path: Path) -> None:
    letter = {
        "id": "letter", "kind": "rule", "check": "ifeval/keywords:letter_frequency",
        "params": {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
    }  # fmt: skip
    source = write(tmp_path / "rows.jsonl", [row("a", [NO_COMMA, letter], response="Owls.")])
    result = score(source, tmp_path / "out.jsonl")
    assert "left out: 1 x ifeval/keywords:letter_frequency: '#' is not a letter" in result.output
    totals = read_totals(tmp_path / "out.jsonl")
    assert (totals["mean_reward"], share(totals["instruction_level"])) == (1.0, (1, 1))


COUNTED = """
import os, time
from herl_megatron.rubrics.checks.registry import register

@register("own/counted", description="Write it into {log}.")
def counted(response: str, *, log: str) -> bool:
    with open(log, "a") as file:
        file.write(response + "\\n")
    if response == "slow":
        time.sleep(5)
    return True

@register("own/fatal", description="End the process on the word fatal.")
def fatal(response: str) -> bool:
    if "fatal" in response:
        os.abort()
    return True
"""


@pytest.fixture(scope="module")
def own_checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `own_score_checks`; its checks register once per process."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_score_checks.py").write_text(COUNTED, encoding="utf-8")
    return folder


def own(
    own_checks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, texts: list[str]
) -> tuple[Path, Path]:
    """Rows w0, w1, ... whose check logs each response that it judges; the rows and the log."""
    monkeypatch.chdir(own_checks)
    log = tmp_path / "log"
    check = {"id": "c", "kind": "rule", "check": "own/counted", "params": {"log": str(log)}}
    rows = [row(f"w{i}", [check], response=text) for i, text in enumerate(texts)]
    return write(tmp_path / "rows.jsonl", rows), log


def test_goes_on_where_it_was_stopped(
    own_checks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, log = own(own_checks, monkeypatch, tmp_path, ["r0", "r1", "r2", "r3"])
    out, module = tmp_path / "out.jsonl", ("--check-module", "own_score_checks")
    totals = scored(source, out, *module)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.unlink()
    # As a kill leaves it: rows in the order in which they finished, the last one torn.
    out.write_bytes(lines[2] + lines[0] + lines[3][:40])
    assert scored(source, out, *module) == totals
    assert out.read_bytes() == whole
    assert log.read_text().split() == ["r1", "r3"]
    log.unlink()
    assert scored(source, out, *module) == totals
    assert not log.exists()


def test_unscored_rows_are_tried_again(
    own_checks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, log = own(own_checks, monkeypatch, tmp_path, ["slow", "r1"])
    out, module = tmp_path / "out.jsonl", ("--check-module", "own_score_checks")
    result = score(source, out, *module, "--check-timeout", "0.2")
    assert result.exit_code == 0
    totals = read_totals(out)
    assert (totals["scored"], totals["unscored"], totals["mean_reward"]) == (1, 1, 1.0)
    reason = "criterion c: own/counted gave no verdict within 0.2 s"
    assert totals["unscored_by_reason"] == {reason: 1}
    assert f"unscored: 1 x {reason}" in result.output
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["status"], first["reward"], first["reason"]) == ("unscored", None, reason)
    log.unlink()
    scored(source, out, *module, "--check-timeout", "0.2")
    assert log.read_text().split() == ["slow"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response": "other"}, "row 'a' was scored with another content"),
        ({"id": "z"}, "row 'a' is not in the input"),
    ],
)
def test_scores_of_other_rows_are_not_taken_over(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    original = row("a", [NO_COMMA], response="Owls.")
    out = tmp_path / "out.jsonl"
    scored(write(tmp_path / "rows.jsonl", [original]), out)
    before = out.read_bytes()
    result = score(write(tmp_path / "rows.jsonl", [original | change]), out)
    assert result.exit_code == 2
    assert f"{out}:1: " in result.output and said in result.output and "--out" in result.output
    assert out.read_bytes() == before


def test_scores_of_another_mode_or_another_file_are_not_taken_over(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row("a", [NO_COMMA], response="Owls.")])
    out = tmp_path / "out.jsonl"
    scored(source, out)
    assert "other settings than --mode loose" in score(source, out, "--mode", "loose").output
    out.write_text("notes\n")
    result = score(source, out)
    assert result.exit_code == 2 and "not a line of `herl score`" in result.output


def test_scores_of_a_check_as_it_was_are_not_taken_over(tmp_path: Path) -> None:
    """Each time in a process of its own, as from a shell: a module is imported once."""
    module = tmp_path / "edited_checks.py"
    check = (
        "from herl_megatron.rubrics.checks.registry import register\n"
        "@register('edited/it', description='d')\ndef it(response: str) -> bool:\n"
    )
    source = write(tmp_path / "rows.jsonl", [
        row("a", [{"id": "c", "kind": "rule", "check": "edited/it"}], response="Owls."),
    ])  # fmt: skip
    out = tmp_path / "out.jsonl"

    def run() -> subprocess.CompletedProcess[str]:
        command = ["score", str(source), "--out", str(out), "--check-module", "edited_checks"]
        return subprocess.run(
            [sys.executable, "-m", "herl_megatron.cli", *command],
            capture_output=True, text=True, check=False, timeout=HANG_S, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    module.write_text(check + "    return False\n")
    assert run().returncode == 0 and read_totals(out)["mean_reward"] == 0.0
    assert run().returncode == 0
    module.write_text(check + "    return True  # mended\n")
    changed = run()
    assert changed.returncode == 2 and "other settings than" in changed.stderr
    out.unlink()
    assert run().returncode == 0 and read_totals(out)["mean_reward"] == 1.0


def test_scores_by_another_judge_prompt_are_not_taken_over(tmp_path: Path) -> None:
    template = tmp_path / "prompt.txt"
    template.write_text("{response}\n{statements}\nBe fair.")
    source = write(tmp_path / "rows.jsonl", [row("a", [says("owl")], response="An owl.")])
    out = tmp_path / "out.jsonl"
    with fake_judge() as judge:
        options = ("--judge", judge.url, "--judge-model", "m", "--judge-set", "cache=",
                   "--judge-set", f"prompt={template}")  # fmt: skip
        scored(source, out, *options)
        assert score(source, out, *options, "--judge-set", "retries=9").exit_code == 0
        template.write_text("{response}\n{statements}\nBe strict.")
        result = score(source, out, *options)
    assert result.exit_code == 2 and "other settings than" in result.output


def test_settings_have_every_key_that_decides_verdicts() -> None:
    """One that is new must be added here, to the options of `herl score` and to its settings."""
    paths = {key.path for key in keys_that_decide(Decides.VERDICTS, purpose="eval")}
    options = {"scoring.answer_after", "scoring.check_modules"}
    anew = {"scoring.check_timeout_s", "scoring.check_memory_bytes"}  # what it stops has no score
    assert {path for path in paths if path.startswith("scoring.")} - anew == options
    assert _judge_keys() == {
        "model", "evidence", "canary", "samples", "structured", "temperature", "max_tokens",
        "extra_body",
    }  # fmt: skip


def test_limits_of_checks_are_the_same_wherever_they_are_left_out() -> None:
    """The schema, `herl score`'s options, its job and a check's process each have a default."""
    scoring, job = ScoringConfig(), ScoreJob(Path("in"), Path("out"))
    command: Any = get_command(app)
    options = {option.name: option.default for option in command.commands["score"].params}
    memory = (scoring.check_memory_bytes, options["check_memory"], CheckLimits().memory_bytes)
    assert len(set(memory)) == 1
    assert options["check_timeout"] == scoring.check_timeout_s
    assert job.scoring == scoring


def test_only_the_answer_is_scored_where_it_begins_is_said(tmp_path: Path) -> None:
    limit: dict[str, Any] = NO_COMMA | {"id": "limit", "check": "muldimif/Length/Words"}
    limit["params"] = {"text": "At most 5 words"}  # which blank text would meet
    answers = ["a, b</think>No comma.", "No comma, no answer"]
    rows = [row("a1", [NO_COMMA, limit], responses=answers)]
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "scores.jsonl"
    totals = scored(source, out, "--answer-after", "</think>")
    assert share(totals["prompt_level"]) == (1, 2)
    (line,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert [response["reward"] for response in line["responses"]] == [1.0, 0.0]
    refused = score(source, out)
    assert refused.exit_code == 2 and "scored with another content" in refused.output


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Nothing is scored twice, and the judge is not asked twice."""
    source = write(tmp_path / "rows.jsonl", [row("a1", [says("river")], response="A river.")])
    out = tmp_path / "scores.jsonl"
    with fake_judge() as server:
        judge = ("--judge", server.url, "--judge-model", "m", "--judge-set", "cache=")
        other = ScoreFile(out, load_responses(str(source)), settings="")
        refused = score(source, out, *judge)
        assert refused.exit_code == 2
        assert "another `herl score` is writing it" in " ".join(
            refused.output.replace("│", " ").split()
        )
        assert server.calls.total() == 0
        other.close()
        other.close()
        scored(source, out, *judge)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rows.jsonl", "scores.jsonl", "scores.jsonl.judge_spent.json",
        "scores.jsonl.summary.json",
    ]  # fmt: skip


def test_only_a_file_of_its_own_is_written(tmp_path: Path) -> None:
    """A device has no end; and what is somebody else's stays, with a line's end and without."""
    source = write(tmp_path / "rows.jsonl", ROWS[:1])
    for device in ("/dev/full", "/dev/zero", str(tmp_path)):
        result = score(source, Path(device))
        assert result.exit_code == 2 and "is no regular file" in result.output
    out = tmp_path / "out.jsonl"
    for text in ("hello", "hello\n", "{}", '{"id"', '{"id": "a1", "messages": [{"role', "[1",
                 source.read_text().strip(), '{"id": "a1", "made_from": 3}'):  # fmt: skip
        out.write_text(text)
        result = score(source, out)
        if text == '{"id"':  # it may be herl's, cut by a kill
            assert result.exit_code == 0
            out.with_name("out.jsonl.summary.json").unlink()
        else:
            assert result.exit_code == 2, text
            assert out.read_text() == text
    out.unlink()
    for text in ("my summary", "{}", '{"mode": "strict"}', "[]"):
        out.with_name("out.jsonl.summary.json").write_text(text)
        result = score(source, out)
        assert result.exit_code == 2 and "is not of `herl score`" in result.output
        assert out.with_name("out.jsonl.summary.json").read_text() == text


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 10, 20, 40])
def test_a_line_cut_anywhere_is_made_again(tmp_path: Path, cut: int) -> None:
    source, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores.jsonl"
    scored(source, out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(lines[0] + lines[1][:cut])
    scored(source, out)
    assert out.read_bytes() == whole


def test_what_lies_where_a_lock_would_be_stays(tmp_path: Path) -> None:
    """`--out poetry` beside somebody's poetry.lock, and worse."""
    source = write(tmp_path / "rows.jsonl", ROWS[:1])
    out, mine = tmp_path / "poetry", tmp_path / "poetry.lock"
    mine.write_text("pinned")
    scored(source, out)
    assert mine.read_text() == "pinned"
    out.unlink()
    lock = tmp_path / "poetry.herl-lock"
    lock.write_text("mine")
    result = score(source, out)
    assert result.exit_code == 2 and "is no lock of `herl score`" in " ".join(result.output.split())
    assert lock.read_text() == "mine" and not out.exists()
    lock.unlink()
    os.mkfifo(lock)
    assert score(source, out).exit_code == 2
    out.symlink_to(tmp_path / "elsewhere")
    assert score(source, out).exit_code == 2 and not (tmp_path / "elsewhere").exists()


def test_a_lock_that_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    source, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores.jsonl"
    out.with_name("scores.jsonl.herl-lock").touch()
    scored(source, out)


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", ROWS)
    result = score(source, source / "out.jsonl")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "stopped: " in result.output and "name another --out" in result.output


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row("a", [NO_COMMA]), "neither of 'response' and 'responses'"),
        (row("a", [NO_COMMA], response="x", responses=["y"]), "both of 'response' and"),
        (row("a", [NO_COMMA], responses=[]), "responses must be a list of texts"),
        (row("a", [NO_COMMA], responses=["x", 3]), "responses[1] must be a text, not 3"),
        (row("a", [NO_COMMA], respons="x"), "neither of"),
        (row("a", [{**NO_COMMA, "check": "ifeval/no_coma"}], response="x"), "unknown check"),
        (row("b", [NO_COMMA], response="x"), "'b' is already used in line 1"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(
    tmp_path: Path, bad: dict[str, Any], said: str
) -> None:
    good = row("b", [NO_COMMA], response="x")
    source = write(tmp_path / "rows.jsonl", [good, bad])
    result = score(source, tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert f"{source}:2: " in result.output and said in result.output
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "mode", "prompts", "instructions"),
    [
        ("ifeval", "strict", (394, 541), (665, 834)),
        ("ifeval", "loose", (403, 541), (678, 834)),
        ("ifbench", "strict", (77, 294), (96, 335)),
        ("ifbench", "loose", (84, 294), (106, 335)),
    ],
)
def test_real_responses_give_the_reference_totals(
    tmp_path: Path, name: str, mode: str, prompts: tuple[int, int], instructions: tuple[int, int]
) -> None:
    """Where the reference draws a letter or a span at random ours is left out: at most 3 apart."""
    rows = [
        row(
            f"{name}-{item['key']}",
            [
                {"id": f"c{i}", "kind": "rule", "check": f"{name}/{check}", "params": params}
                for i, (check, params) in enumerate(
                    zip(item["instruction_id_list"], item["kwargs"], strict=True)
                )
            ],
            response=item["response"],
        )
        for item in reference_rows(f"{name}_qwen25_7b.jsonl.gz")
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    totals = scored(source, tmp_path / "out.jsonl", "--mode", mode, "--workers", "1")
    for level, expected in (("prompt_level", prompts), ("instruction_level", instructions)):
        satisfied, of = share(totals[level])
        assert abs(satisfied - expected[0]) <= 1
        assert 0 <= expected[1] - of <= 3


def test_needs_no_model_library() -> None:
    code = (
        "import sys, herl_megatron.cli, herl_megatron.commands.score.job\n"
        "heavy = ('torch', 'megatron', 'vllm', 'ray', 'transformers', 'openai')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_many_processes_give_the_same_and_survive_a_check_that_kills_them(
    own_checks: Path, tmp_path: Path
) -> None:
    """In processes of its own, as from a shell: Ray starts and ends with the command."""
    fatal = {"id": "f", "kind": "rule", "check": "own/fatal"}
    rows = ROWS + [row("c1", [fatal], response="fatal"), row("c2", [fatal], response="fine")]
    source = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out.jsonl"
    command = ["score", str(source), "--out", str(out), "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "herl_megatron.cli", *command, "--check-module", "own_score_checks"],
        capture_output=True, text=True, check=False, timeout=HANG_S, cwd=own_checks,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scored(write(tmp_path / "few.jsonl", ROWS), tmp_path / "few.out.jsonl")
    found, few = ([json.loads(line) for line in path.read_bytes().splitlines()]
                  for path in (out, tmp_path / "few.out.jsonl"))  # fmt: skip
    assert all(a.pop("made_from") != b.pop("made_from") for a, b in zip(found, few, strict=False))
    assert found[:3] == few
    assert found[3]["reason"] == "criterion f: own/fatal ended its process (by SIGABRT)"
    assert found[4]["reward"] == 1.0
