"""`herl score` with checks that misbehave, in processes of their own; and with a judge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fake_judge import fake_judge
from tests.limits import HANG_S
from tests.unit.score.score_cases import (
    NO_COMMA,
    ROWS,
    row,
    says,
    score,
    scored,
    share,
    write,
)

ROOT = Path(__file__).parents[3]
DOES = """
import os, signal, sys, time
from herl_megatron.rubrics.checks.registry import register

@register("own/does", description="Do as the response says.")
def does(response: str) -> bool:
    try:
        exec(response)
    except Exception:
        return True
    return True
"""


DOES_IT = {"id": "d", "kind": "rule", "check": "own/does"}


def test_whatever_a_check_does_one_worker_goes_on_and_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "does_checks.py").write_text(DOES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    misdeeds = {
        "raise KeyboardInterrupt": "raised KeyboardInterrupt: ",
        "sys.exit(0)": "raised SystemExit: 0",
        "os._exit(0)": "ended its process (with exit code 0)",
        "time.sleep(60)": "gave no verdict within 0.3 s",
        "signal.pthread_sigmask(0, [14]); time.sleep(60)": "gave no verdict within 0.3 s",
        "bytearray(300 << 20)": "took more than 200,000,000 bytes of memory"
        " (scoring.check_memory_bytes)",
    }
    rows = [row(f"r{i}", [DOES_IT], responses=[text, "pass"]) for i, text in enumerate(misdeeds)]
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    options = ("--check-module", "does_checks", "--workers", "1", "--check-timeout", "0.3",
               "--check-memory", "200000000")  # fmt: skip
    totals = scored(source, out, *options)
    assert (totals["scored"], totals["unscored"], totals["mean_reward"]) == (6, 6, 1.0)
    assert totals["unscored_by_reason"] == {
        f"criterion d: own/does {said}": list(misdeeds.values()).count(said)
        for said in misdeeds.values()
    }
    assert "does_checks" not in sys.modules


@pytest.mark.parametrize("check", ["users", "ours"])
def test_ctrl_c_ends_the_command_at_once_and_its_children(tmp_path: Path, check: str) -> None:
    """While a check of the user's runs that nothing stops, or one of ours that backtracks."""
    (tmp_path / "does_checks.py").write_text(DOES, encoding="utf-8")
    pids = tmp_path / "pids"
    hangs = (
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} ')\n"
        "signal.pthread_sigmask(0, signal.valid_signals())\ntime.sleep(60)"
    )
    wanted = {"keywords": ["(a+)+b"]}
    slow = {"id": "s", "kind": "rule", "check": "ifeval/keywords:existence", "params": wanted}
    rows = [row("first", [NO_COMMA], response="Owls.")]
    rows.append(row("u", [DOES_IT], response=hangs) if check == "users"
                else row("s", [slow], response="a" * 40))  # fmt: skip
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    command = subprocess.Popen(
        [sys.executable, "-m", "herl_megatron.cli", "score", str(source), "--out", str(out),
         "--check-module", "does_checks", "--check-timeout", "50" if check == "users" else "3"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        wait_until(lambda: out.exists() and out.read_text().count("\n") == 1)
        if check == "users":
            wait_until(lambda: pids.exists() and pids.read_text().endswith(" "))
        sent = time.monotonic()
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=HANG_S)
        assert time.monotonic() - sent < 10
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 130 and "the same command goes on" in " ".join(said.split())
    if check == "users":
        wait_until(lambda: not any(psutil.pid_exists(int(p)) for p in pids.read_text().split()))
        assert len(out.read_text().splitlines()) == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def x(:\n", "broken_checks.py:1: SyntaxError"),
        ("import sys\nsys.exit(0)", "broken_checks.py:2: SystemExit: 0"),
        ("raise RuntimeError('boom')", "broken_checks.py:1: RuntimeError: boom"),
        ("import os\nos._exit(0)", "importing 'broken_checks' ended its process"),
    ],
)
def test_a_check_module_that_cannot_be_imported_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / "broken_checks.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path / "rows.jsonl", ROWS)
    result = score(rows, tmp_path / "out.jsonl", "--check-module", "broken_checks")
    assert result.exit_code == 2 and not (tmp_path / "out.jsonl").exists()
    assert "scoring.check_modules" in result.output and said in result.output


def test_statements_go_to_the_judge_and_rules_do_not(tmp_path: Path) -> None:
    rows = [
        row("a", [NO_COMMA, says("owl", weight=3), says("fern", polarity="negative")],
            responses=["An owl, a fern.", "An owl."]),
        row("b", [NO_COMMA], response="No judge is asked about this."),
    ]  # fmt: skip
    rows.append(row("c", [says("owl")], response="one two three four five six seven"))
    rows[-1]["rubric"]["aggregation"] = "implicit"
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    with fake_judge() as judge:
        options = ("--judge", judge.url, "--judge-model", "m", "--judge-set", "cache=")
        totals = scored(source, out, *options)
        first = [json.loads(line) for line in out.read_text().splitlines()]
        assert sum(judge.calls.values()) == 4  # three responses and the question before them
        assert scored(source, out, *options) == totals
        assert sum(judge.calls.values()) == 4
    # The first misses the comma rule and the negative criterion: 3 of 5.
    assert [entry["reward"] for entry in first[0]["responses"]] == [pytest.approx(3 / 5), 1.0]
    assert (first[1]["reward"], first[2]["reward"]) == (1.0, pytest.approx(0.7))
    assert first[2]["verdicts"] == [{"id": "owl", "verdict": "not_followed", "grade": 0.7}]
    assert share(totals["per_check"]["judge"]) == (3, 5)


def test_a_judge_that_is_needed_must_be_named(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row("a", [says("owl")], response="Owls.")])
    missing = score(source, tmp_path / "out.jsonl")
    assert missing.exit_code == 2 and "judge.base_url is empty" in missing.output
    wrong = score(source, tmp_path / "out.jsonl", "--judge-set", "concurency=3")
    assert wrong.exit_code == 2 and "concurrency" in wrong.output
    assert not (tmp_path / "out.jsonl").exists()


PARTS = """
from herl_megatron.rubrics.checks.registry import register

@register("own/share", description="Use {letter}.")
def share_of(response: str, *, letter: str) -> float:
    return response.count(letter) / len(response)
"""


def test_numbers_are_summed_up_beside_full_credit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of `a` are 1/2 and 1, of the unwanted `b` 1/2 and 0: credits 1/2, 1, 1/2 and 1."""
    (tmp_path / "parts_checks.py").write_text(PARTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    a = {"id": "a", "kind": "rule", "check": "own/share", "params": {"letter": "a"}, "weight": 3}
    b = {**a, "id": "b", "params": {"letter": "b"}, "polarity": "negative", "weight": 1}
    rows = [row("r", [a, b, NO_COMMA], responses=["ab", "aa"])]
    out = tmp_path / "out.jsonl"
    totals = scored(write(tmp_path / "rows.jsonl", rows), out, "--check-module", "parts_checks")
    first, second = json.loads(out.read_text())["responses"]
    assert first["reward"] == (3 * 0.5 + 1 * 0.5 + 1) / 5 and second["reward"] == 1.0
    assert first["verdicts"] == [
        {"id": "a", "verdict": "not_followed", "grade": 0.5},
        {"id": "b", "verdict": "not_followed", "grade": 0.5},
        {"id": "comma", "verdict": "followed"},
    ]
    assert totals["mean_reward"] == (0.6 + 1.0) / 2
    assert totals["per_check"] == {
        "own/share": {"satisfied": 2, "of": 4, "share": 0.5, "mean_credit": 0.75},
        "ifeval/punctuation:no_comma": {"satisfied": 2, "of": 2, "share": 1.0},
    }
    before = out.read_bytes()
    scored(tmp_path / "rows.jsonl", out, "--check-module", "parts_checks")  # read back, not anew
    assert out.read_bytes() == before
