"""Rows that are there already, prepared by the real `herl data`: taken, or told apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.benchmarks.known_benchmarks import BENCHMARKS
from herl_megatron.commands import data, reproduce
from herl_megatron.data.sources.catalog import SOURCES
from herl_megatron.reproduce.chain import make_chain
from herl_megatron.reproduce.data_sets import EVALUATION, TRAINING
from herl_megatron.reproduce.paper_rows import find_row
from herl_megatron.reproduce.prepared_rows import WantedRows, report_options
from herl_megatron.reproduce.stage import ChainOptions
from herl_megatron.run.lock import RunLock
from tests.unit.reproduce.config_folder import ROOT

FOLDER = Path("data/ifeval")
TINY = replace(EVALUATION["ifeval"], sizes=(2,))
"""IFEval, if it had two rows."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("two.jsonl", "a", "b")
    write("three.jsonl", "a", "b", "c")
    return tmp_path


def write(name: str, *prompts: str) -> None:
    check = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [{"key": number, "prompt": p} | check for number, p in enumerate(prompts)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(place: str, *options: str, benchmark: bool = True) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    words = [*(["--benchmark"] if benchmark else []), *options]
    assert data.main(["ifeval", "--input", place, *words, "--out", str(FOLDER)]) == 0


def wanted(given: str = "", **changes: Any) -> WantedRows:
    found = WantedRows("ifeval", TINY, given, TINY.options, FOLDER, (FOLDER / "eval.jsonl",))
    return replace(found, **changes)


def test_the_whole_set_prepared_by_hand_is_fine_wherever_it_lay() -> None:
    prepare("two.jsonl")
    assert wanted().differs() == ""
    Path("two.jsonl").unlink()
    assert wanted().differs() == ""


def test_the_same_rows_from_another_place_are_the_same() -> None:
    prepare("three.jsonl")
    shutil.copy("three.jsonl", "copy.jsonl")
    assert wanted("copy.jsonl").differs() == ""
    said = wanted("two.jsonl").differs()
    assert "made from three.jsonl, not two.jsonl. Move it away" in said
    assert "mv data/ifeval data/ifeval.before-1" in said and "leave --input ifeval away" in said
    Path("three.jsonl").unlink()
    assert wanted("three.jsonl").differs() == ""  # that place, whose rows are gone
    write("three.jsonl", "a", "b", "d")
    assert "made from three.jsonl, not three.jsonl" in wanted("three.jsonl").differs()


def test_a_part_of_the_set_is_not_the_set() -> None:
    prepare("three.jsonl")
    said = wanted().differs()
    assert "made from three.jsonl with 3 rows in eval.jsonl, and google/IFEval has 2;" in said
    assert "give --input ifeval=three.jsonl" in said


def test_folders_are_told_apart_by_their_place(here: Path) -> None:
    prepare("two.jsonl")
    report = json.loads((FOLDER / "report.json").read_text())
    report["inputs"][0] |= {"place": "downloads/IFEval", "sha256": ""}
    (FOLDER / "report.json").write_text(json.dumps(report))
    none = replace(TINY, sizes=())
    assert wanted(origin=none).differs() == ""  # where `hf download` writes, as we say
    assert wanted(str(here / "downloads/IFEval"), origin=none).differs() == ""
    assert "made from downloads/IFEval, not other" in wanted("other").differs()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "3"], "made with seed 3, not 0"),
        (["--eval-share", "0.5"], "made with eval_share 0.5, not 1.0"),
        (["--no-judge"], "made with judge false, not true"),
        (["--aggregation", "explicit"], 'made with aggregation "explicit", not null'),
    ],
)
def test_other_options(words: list[str], said: str) -> None:
    prepare("two.jsonl", *words)
    assert said in wanted().differs()


def test_without_the_option_of_benchmarks() -> None:
    prepare("two.jsonl", benchmark=False)
    assert "made with benchmark false, not true" in wanted().differs()


def test_rows_that_somebody_took_out() -> None:
    prepare("two.jsonl")
    file = FOLDER / "eval.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert "eval.jsonl has 1 rows, not 2 as report.json says" in wanted().differs()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "hir"}, "of the set 'hir', not 'ifeval'"),
        ({"rejected": {"prompt too long": 4}}, "made without 4 rows (prompt too long)"),
        ({"leaked": {"x/eval.jsonl": 5, "eval": 1}}, "made without 5 rows that x/eval.jsonl has"),
        ({"options": None}, "report.json has no options"),
        ({"rows": []}, "report.json has no rows"),
        ({"rows": {"eval": "2"}}, "eval.jsonl has 2 rows, not '2'"),
    ],
)
def test_what_else_a_report_says(changes: dict[str, Any], said: str) -> None:
    prepare("two.jsonl")
    report = json.loads((FOLDER / "report.json").read_text()) | changes
    (FOLDER / "report.json").write_text(json.dumps(report))
    assert said in wanted().differs()
    (FOLDER / "report.json").write_text("{")
    assert "report.json is not valid JSON" in wanted().differs()


def test_an_option_that_a_report_is_too_old_to_have_was_not_given() -> None:
    prepare("two.jsonl")
    report = json.loads((FOLDER / "report.json").read_text())
    del report["options"]["types"]
    (FOLDER / "report.json").write_text(json.dumps(report))
    assert wanted().differs() == ""


def test_the_command_says_so_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Three rows are no IFEval."""
    prepare("three.jsonl", benchmark=False)
    capsys.readouterr()
    words = ["qwen2.5_7b/if/herl", "--configs", str(ROOT / "configs")]
    assert reproduce.main([*words, "--print"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if " data_ifeval (" in x]
    assert "(there, but not as asked: data/ifeval holds other rows" in line
    assert reproduce.main([*words, "--only", "data_ifeval"]) == 2
    said = capsys.readouterr().err
    assert "nothing was started" in said and "made with benchmark false, not true" in said
    assert not list(Path("runs").rglob("row.json"))


def test_rows_are_locked_where_they_are_for_every_preset_and_folder() -> None:
    homes = set()
    for folder in ("first", "second"):
        asked = ChainOptions(ROOT / "configs", Path(folder))
        stages = make_chain(find_row("qwen2.5_7b/if/herl"), asked)
        homes |= {stage.home for stage in stages if stage.name == "data_if"}
    assert homes == {Path("data/hir")}
    RunLock.take(FOLDER).release()
    assert data.main(["ifeval", "--input", "two.jsonl", "--out", str(FOLDER)]) == 0  # in no way


def test_options_are_as_herl_data_reports_them() -> None:
    """Of every data stage that there is: what its words become there."""
    seen: set[tuple[str, ...]] = set()
    for preset, task in (("released", "if"), ("released", "medical"), ("paper", "medical")):
        asked = ChainOptions(ROOT / "configs", Path("r"), preset=preset)  # type: ignore[arg-type]
        stages = make_chain(find_row(f"qwen3_4b/{task}/herl"), asked)
        seen |= {stage.argv[1:] for stage in stages if stage.name.startswith("data_")}
    assert len(seen) == 9  # six benchmarks, HIR, RaR as it is and with the released reward
    for words in seen:
        parsed = data.parse_arguments(words)
        assert not (parsed.types or parsed.keep_out or parsed.drop_long or parsed.tokenizer)
        assert report_options(words[0], words) == {
            "judge": not parsed.no_judge, "aggregation": parsed.aggregation,
            "unclear": parsed.unclear_pitfalls, "benchmark": parsed.benchmark, "types": [],
            "eval_share": SOURCES[words[0]].eval_share, "seed": parsed.seed,
        }  # fmt: skip


def test_sizes_are_the_benchmarks_own() -> None:
    for name, origin in EVALUATION.items():
        assert origin.sizes and set(origin.sizes) <= set(BENCHMARKS[name].sizes)
    # 2 % of 10,606 rows are held out (configs/tasks/if.yaml); RaR-Medicine has splits of its own.
    assert TRAINING["if"].sizes == (10606 - round(0.02 * 10606),)
    assert TRAINING["medical"].sizes == (17926,)
