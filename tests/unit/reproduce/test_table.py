"""Evaluations beside the paper's numbers: what was measured, what is empty, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.commands import reproduce
from herl_megatron.config.load import load_config, save_resolved
from herl_megatron.files.run_files import EVALUATED, write_run_file
from herl_megatron.reproduce.lineage import fingerprint_of
from herl_megatron.reproduce.row_record import RowRecord, write_record
from herl_megatron.reproduce.table_files import write_table
from tests.unit.reproduce.config_folder import ROOT

HERL, BASE = "qwen2.5_7b/if/herl", "llama3.2_3b/base"


def benchmark(value: float, prompts: int = 541, **more: Any) -> dict[str, Any]:
    counts = {"prompts": prompts, "responses": prompts, "unscored": 0}
    return {"headline": "strict", **counts, "metrics": {"strict": value, "loose": 1.0}} | more


def evaluated(
    folder: Path,
    numbers: Mapping[str, Any],
    *settings: str,
    command: str = "eval",
    rows: str = "a",
) -> Path:
    """A run's folder as `herl eval` leaves it."""
    folder.mkdir(parents=True)
    (folder.parent / "empty.yaml").write_text("run: {seed: 0}")
    given = [f"run.name={folder.name}", "model.path=m", *settings]
    save_resolved(load_config(folder.parent / "empty.yaml", given), folder / "config.yaml")
    (folder / "metrics.jsonl").write_text('{"step": 0, "eval/reward": 0.5}\n')
    write_run_file(folder, {"command": command, "fingerprints": {"data.eval": rows}})
    (folder / EVALUATED).write_text(json.dumps(numbers))
    return folder


def row(
    parent: Path, name: str, *settings: str, scale: str = "full", preset: str = "released",
    **benchmarks: Any,
) -> Path:  # fmt: skip
    """A row's folder, with a run for each benchmark."""
    folder = parent / name
    preset = "" if name.endswith("/base") else preset
    write_record(folder, RowRecord(name, scale, preset, {}))
    for of, found in benchmarks.items():
        evaluated(folder / f"eval_{of}", {"benchmarks": {of: found}}, *settings)
    return folder


def lines(folder: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with open(folder / "table.csv", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return {(x["table"], x["model"], x["method"], x["benchmark"]): x for x in found}


def test_what_keeps_a_number_from_comparing_is_below_the_table(tmp_path: Path) -> None:
    """Three of IFEval's prompts are no IFEval: the cell is marked, and says why."""
    few = "3 prompts, the whole set has 541"
    row(tmp_path / "runs", HERL, ifeval=benchmark(0.8, 3, responses=3, notes=[few]))
    write_table([tmp_path / "runs"], named={}, out=tmp_path / "out")
    said = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| 80.0 |  | 3 (*) | 82.4 | -2.4 |" in said
    assert said.count(f"(*) {HERL} on IFEval: {few}.") == 1
    assert f"(*) {HERL} on IFEval: {few}." in (tmp_path / "out/report.html").read_text()
    assert lines(tmp_path / "out")["main", *HERL.split("/")[::2], "ifeval"]["notes"] == few


def test_a_benchmark_is_the_same_beside_others(tmp_path: Path) -> None:
    """One run evaluated IFEval and IFBench, another IFEval alone, on the same rows of it: the hash
    of all rows differs, that of IFEval's does not."""
    both: dict[str, Any] = {
        "benchmarks": {"ifeval": benchmark(0.7), "ifbench": benchmark(0.3, 294)}
    }
    both["rows"] = {"ifeval": "541 rows a", "ifbench": "294 rows b"}
    alone: dict[str, Any] = {
        "benchmarks": {"ifeval": benchmark(0.8)},
        "rows": {"ifeval": "541 rows a"},
    }
    made = evaluated(tmp_path / "one/both", both, rows="835 rows c")
    other = evaluated(tmp_path / "two/alone", alone, rows="541 rows a")
    write_table([], named={BASE: made, HERL: other}, out=tmp_path / "out")
    found = lines(tmp_path / "out")
    measured = [x["measured"] for x in found.values() if x["benchmark"] == "ifeval"]
    assert sorted(filter(None, measured)) == ["70.0", "80.0"]
    alone["rows"] = {"ifeval": "541 rows z"}
    (other / EVALUATED).write_text(json.dumps(alone))
    with pytest.raises(ValueError, match="its rows '541 rows a' and '541 rows z'"):
        write_table([], named={BASE: made, HERL: other}, out=tmp_path / "out2")


def test_measured_beside_the_paper(tmp_path: Path) -> None:
    """HeRL's IFEval of the paper is 82.4: 0.8296 measured is 83.0, +0.6."""
    runs = tmp_path / "runs"
    interval = {"strict": [0.7952, 0.8604]}
    ifbench = benchmark(0.3469, 294, responses=588, unscored=7)
    row(runs, HERL, ifeval=benchmark(0.8296, interval=interval), ifbench=ifbench)
    row(runs, BASE, ifeval=benchmark(0.7))
    page = write_table([runs], named={}, out=tmp_path / "out")
    assert page == tmp_path / "out/report.html"

    found = lines(tmp_path / "out")
    assert len(found) == 90 + 24
    cell = found["main", "qwen2.5_7b", "herl", "ifeval"]
    assert (cell["measured"], cell["low"], cell["high"]) == ("83.0", "79.5", "86.0")
    assert (cell["paper"], cell["difference"], cell["prompts"]) == ("82.4", "0.6", "541")
    assert cell["run"].endswith("herl/eval_ifeval") and "project page" in cell["source"]
    main, ablation = (found[t, "qwen2.5_7b", "herl", "ifbench"] for t in ("main", "ablation"))
    assert (main["measured"], main["difference"]) == ("34.7", "-5.0")  # of 39.7
    assert (main["responses"], main["unscored"]) == ("588", "7")
    assert main | {"table": ""} == ablation | {"table": ""}
    assert found["main", "llama3.2_3b", "base", "ifeval"]["difference"] == "-1.2"  # 71.2

    empty = [cell for cell in found.values() if not cell["run"]]
    assert len(empty) == 90 + 24 - 4
    for cell in empty:
        assert cell["paper"] and not any(
            cell[key] for key in ("measured", "low", "high", "prompts", "unscored", "difference")
        )


def test_markdown_and_page_show_the_same(tmp_path: Path) -> None:
    run = row(tmp_path, HERL, ifeval=benchmark(0.8296, unscored=2, interval={"strict": [0.8, 0.9]}))
    page = write_table([run], named={}, out=tmp_path / "out").read_text(encoding="utf-8")
    shown = (tmp_path / "out/table.md").read_text(encoding="utf-8").splitlines()
    assert "## Main table: Qwen2.5-7B-Instruct" in shown
    assert "| HeRL | IFEval | 83.0 | 80.0 to 90.0 | 541 (2 unscored) | 82.4 | +0.6 |" in shown
    assert "| RLVR | IFEval |  |  |  | 77.3 |  |" in shown
    assert "| + NaiveHE | HealthBench-500 |  |  |  | 28.8 |  |" in shown
    assert "<td>83.0</td><td>80.0 to 90.0</td><td>541 (2 unscored)</td><td>82.4</td>" in page
    assert "Ablation: Llama-3.2-3B-Instruct" in page and "project page" in page


def test_a_run_that_was_made_without_reproduce(tmp_path: Path) -> None:
    """One run of several sets; what has no cell of the row is named."""
    sets = {"ifeval": benchmark(0.8), "math_500": benchmark(0.5, 500), "ifbench": benchmark(0.3)}
    run = evaluated(tmp_path / "mine", {"benchmarks": sets})
    with pytest.raises(ValueError, match=r"--row NAME=.*/mine"):
        write_table([run], named={}, out=tmp_path / "out")
    write_table([], named={"qwen3_4b/if/rlvr": run}, out=tmp_path / "out")
    found = lines(tmp_path / "out")
    assert found["main", "qwen3_4b", "rlvr", "ifeval"]["difference"] == "-5.8"  # of 85.8
    said = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "in none of the paper's cells: qwen3_4b/if/rlvr on math_500." in said


def test_two_runs_for_one_cell_are_refused(tmp_path: Path) -> None:
    first = row(tmp_path / "a", HERL, ifeval=benchmark(0.8))
    second = row(tmp_path / "b", HERL, ifeval=benchmark(0.9))
    with pytest.raises(ValueError, match=r"two runs for one cell, .*herl on ifeval: .*/a/.*/b/"):
        write_table([first, second], named={}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        (["eval.temperature=0.6"], {}, r"eval.temperature 1.0 and 0.6"),
        (["rollout.max_response_tokens=99"], {}, r"rollout.max_response_tokens \d+ and 99"),
        (["judge.model=other"], {}, "judge.model '' and 'other'"),
        ([], {"prompts": 540}, "the number of prompts 541 and 540"),
    ],
)
def test_other_ways_of_evaluating_are_refused(
    settings: list[str], more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    row(tmp_path, BASE, ifeval=benchmark(0.7))
    row(tmp_path, HERL, *settings, ifeval=benchmark(0.8) | more)
    with pytest.raises(ValueError, match=f"ifeval was evaluated in different ways: {said}"):
        write_table([tmp_path], named={}, out=tmp_path / "out")


def test_other_rows_are_refused_and_layout_and_model_are_not(tmp_path: Path) -> None:
    run = evaluated(
        tmp_path / "one", {"benchmarks": {"ifeval": benchmark(0.7)}}, "rollout.replicas=8",
        "model.path=elsewhere",
    )  # fmt: skip
    row(tmp_path / "rows", HERL, ifeval=benchmark(0.8))
    write_table([tmp_path / "rows"], named={BASE: run}, out=tmp_path / "out")
    other = evaluated(tmp_path / "two", {"benchmarks": {"ifeval": benchmark(0.7)}}, rows="b")
    with pytest.raises(ValueError, match="its rows 'a' and 'b'"):
        write_table([tmp_path / "rows"], named={BASE: other}, out=tmp_path / "out")


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    real = row(tmp_path / "a", HERL, ifeval=benchmark(0.8))
    toy = row(tmp_path / "t", BASE, scale="toy")
    evaluated(toy / "eval_toy", {"all_satisfied": 0.25, "responses": 8, "unscored": 1})
    with pytest.raises(ValueError, match="scale full .* and toy .*: make a table of each"):
        write_table([real, toy], named={}, out=tmp_path / "out")
    paper = row(tmp_path / "p", "qwen3_4b/if/herl", preset="paper", ifeval=benchmark(0.8))
    with pytest.raises(ValueError, match="preset released .* and paper"):
        write_table([real, paper], named={}, out=tmp_path / "out")

    write_table([toy], named={}, out=tmp_path / "out")
    (cell,) = lines(tmp_path / "out").values()
    assert (cell["measured"], cell["prompts"], cell["unscored"]) == ("25.0", "8", "1")
    assert cell["paper"] == cell["difference"] == ""


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    trained = evaluated(tmp_path / "trained", {}, command="train")
    (trained / "policy").mkdir()
    with pytest.raises(ValueError, match=r"run of `herl train`.*model.path=.*trained/policy"):
        write_table([trained], named={}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="no such folder"):
        write_table([tmp_path / "nowhere"], named={}, out=tmp_path / "out")
    begun = row(tmp_path / "begun", HERL)
    with pytest.raises(ValueError, match="no evaluation that is done"):
        write_table([begun], named={}, out=tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="neither a run of `herl eval` nor a row"):
        write_table([tmp_path / "nothing"], named={}, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"reward": 0.5}, "no numbers by benchmark"),
        ({"benchmarks": {}}, "no numbers by benchmark"),
        ({"benchmarks": {"ifeval": []}}, "benchmarks.'ifeval'"),
        ({"benchmarks": {"ifeval": benchmark(0.5) | {"headline": "x"}}}, "benchmarks.'ifeval'"),
        ({"benchmarks": {"ifeval": benchmark(0.5) | {"metrics": {"strict": "1"}}}}, "'1'"),
        ({"benchmarks": {"ifeval": benchmark(0.5) | {"interval": {"strict": [1]}}}}, "ifeval"),
    ],
)
def test_numbers_that_are_not_there_are_never_guessed(
    numbers: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = evaluated(tmp_path / "run", numbers)
    with pytest.raises(ValueError, match=said):
        write_table([], named={HERL: run}, out=tmp_path / "out")


def test_files_of_somebody_else_stay(tmp_path: Path) -> None:
    run = row(tmp_path, HERL, ifeval=benchmark(0.8))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/table.md").write_text("mine")
    with pytest.raises(ValueError, match=r"table.md is there already"):
        write_table([run], named={}, out=tmp_path / "out")
    assert (tmp_path / "out/table.md").read_text() == "mine"
    (tmp_path / "out/table.md").unlink()
    for _ in range(2):  # an own one is replaced
        write_table([run], named={}, out=tmp_path / "out")


def test_the_command(tmp_path: Path) -> None:
    def herl(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["report", *words])
        return result.exit_code, result.output

    run = row(tmp_path, HERL, ifeval=benchmark(0.8)) / "eval_ifeval"
    out = ("--out", f"{tmp_path}/out")
    assert herl("--table", str(run), *out)[0] == 0
    assert herl("--table", "--row", f"{BASE}={run}", *out)[0] == 0
    for words, said in (
        ([], "no run is named"),
        (["--row", f"{BASE}={run}"], "for --table alone"),
        (["--table", "--row", BASE], "must read NAME=RUN"),
        (["--table", "--row", f"nobody={run}"], "no row of the paper's tables"),
        (["--table", "--row", f"{BASE}=a", "--row", f"{BASE}=b"], "given twice"),
    ):
        code, output = herl(*words, *out)
        assert code == 2 and said in output, output


def test_numbers_of_an_earlier_policy_are_refused(tmp_path: Path) -> None:
    """By the policy that lies there; one that was removed when all was measured is no matter."""
    run = row(tmp_path / "runs", HERL, ifeval=benchmark(0.8296))
    policy = run / "train/policy"
    policy.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, policy / "model.safetensors")
    read = {"eval_ifeval": {"train": fingerprint_of(policy)}}
    write_record(run, RowRecord(HERL, "full", "released", {}, read))
    write_table([run], named={}, out=tmp_path / "out")
    save_file({"w": torch.ones(3)}, policy / "model.safetensors")
    with pytest.raises(
        ValueError,
        match="eval_ifeval has the numbers of an earlier policy than .*train/policy: `herl",
    ):
        write_table([run], named={}, out=tmp_path / "out")
    shutil.rmtree(policy)
    write_table([run], named={}, out=tmp_path / "out")
    assert lines(tmp_path / "out")["main", "qwen2.5_7b", "herl", "ifeval"]["measured"] == "83.0"


def test_what_was_moved_aside_is_in_no_table(tmp_path: Path) -> None:
    run = row(tmp_path, HERL, ifeval=benchmark(0.8296))
    evaluated(run / "eval_ifeval.before-1", {"benchmarks": {"ifeval": benchmark(0.1)}})
    write_table([run], named={}, out=tmp_path / "out")
    assert lines(tmp_path / "out")["main", "qwen2.5_7b", "herl", "ifeval"]["measured"] == "83.0"


def test_the_list_counts_the_numbers_of_the_policy_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = row(tmp_path / "runs", HERL, ifeval=benchmark(0.8), ifbench=benchmark(0.3))
    (run / "train/policy").mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, run / "train/policy/model.safetensors")
    now = fingerprint_of(run / "train/policy")
    read = {"eval_ifeval": {"train": now}, "eval_ifbench": {"train": "another"}}
    write_record(run, RowRecord(HERL, "full", "released", {}, read))
    assert reproduce.main(["--list", "--dir", "runs", "--configs", str(ROOT / "configs")]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith(HERL)]
    assert "1 of 4, 1 stale" in line
