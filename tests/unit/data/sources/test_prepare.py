"""The preparation as a whole: files, splits, leakage, rejected rows, lengths, and the tool."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.data.responses import load_responses
from herl_megatron.data.sources.prepare import Job, prepare
from herl_megatron.data.sources.read import Input
from tests.limits import HANG_S
from tests.unit.data.test_chat import write_tokenizer

ROOT = Path(__file__).parents[4]


def row(key: Any, prompt: str = "", check: str = "punctuation:no_comma") -> dict[str, Any]:
    prompt = prompt or f"Write {key}."
    return {"key": key, "prompt": prompt, "instruction_id_list": [check], "kwargs": [{}]}


def question(text: str, statement: str = "Is kind.") -> dict[str, Any]:
    rubric = [{"title": "t", "description": f"Essential Criteria: {statement}", "weight": 5}]
    return {"question": text, "reference_answer": "So.", "rubric": rubric}


def write(path: Path, *rows: Any) -> Input:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return Input(str(path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(path: Path) -> list[str]:
    return [prompt.id for prompt in load_prompts(str(path))]


def test_every_row_ends_in_one_file_and_bad_ones_say_why(tmp_path: Path) -> None:
    given = write(
        tmp_path / "in.jsonl",
        row(1), "\n", "{broken\n", "[1]\n", row(2, check="no:such"), row(3) | {"kwargs": []},
        row(4, "Write 1."), row(1, "Other."), row(5) | {"scores": [float("nan")]},
        row(6, "half \ud800"),
    )  # fmt: skip
    out = tmp_path / "out"
    report = prepare(Job("ifeval", (given,), out))
    assert sorted(path.name for path in out.iterdir()) == [
        "eval.jsonl",
        "rejected.jsonl",
        "report.json",
    ]
    assert ids(out / "eval.jsonl") == ["ifeval-1", "ifeval-1#2"]
    rejected = lines(out / "rejected.jsonl")
    assert [(r["row"], r["kind"]) for r in rejected] == [
        (3, "unreadable"),
        (4, "unreadable"),
        (5, "no valid canonical row"),
        (6, "kwargs is no list"),
        (7, "repeated row"),
        (9, "no valid canonical row"),  # NaN is no JSON
        (10, "no valid canonical row"),
    ]
    assert rejected[0]["data"] == "{broken" and "not JSON" in rejected[0]["reason"]
    assert "unknown check 'ifeval/no:such'" in rejected[2]["reason"]
    assert rejected[2]["data"] == row(2, check="no:such")
    assert rejected[4]["reason"] == "the same prompt and rubric as row 1"
    assert report == json.loads((out / "report.json").read_text())
    assert report["rows"] == {"in": 9, "eval": 2, "rejected": 7}
    assert report["rejected"]["unreadable"] == 2
    assert report["notes"] == {"id used before: numbered": 1}
    assert report["criteria"]["by_check"] == {"ifeval/punctuation:no_comma": 2}


def test_held_out_share_is_seeded_and_does_not_depend_on_order(tmp_path: Path) -> None:
    rows = [row(n) for n in range(40)]
    given = write(tmp_path / "a.jsonl", *rows)
    job = Job("ifeval", (given,), tmp_path / "one", eval_share=0.25)
    prepare(job)
    held_out = ids(tmp_path / "one" / "eval.jsonl")
    assert len(held_out) == 10 and len(ids(tmp_path / "one" / "train.jsonl")) == 30
    backwards = write(tmp_path / "b.jsonl", *reversed(rows))
    prepare(replace(job, inputs=(backwards,), out=tmp_path / "two"))
    assert set(ids(tmp_path / "two" / "eval.jsonl")) == set(held_out)
    prepare(replace(job, seed=1, out=tmp_path / "three"))
    assert set(ids(tmp_path / "three" / "eval.jsonl")) != set(held_out)


def test_same_input_same_bytes_and_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", *(row(n) for n in range(9)), "x\n")
    out = tmp_path / "out"
    job = Job("ifeval", (given,), out, eval_share=0.5)
    prepare(job)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"train.jsonl", "eval.jsonl", "rejected.jsonl", "report.json"}
    with pytest.raises(ValueError, match=r"already holds train.jsonl.*--overwrite"):
        prepare(job)
    (out / "mine.txt").write_text("stays")
    prepare(replace(job, overwrite=True))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first | {
        "mine.txt": b"stays"
    }
    prepare(replace(job, overwrite=True, eval_share=1.0))
    assert not (out / "train.jsonl").exists()  # no row of it is left, so no old one either


def test_failure_before_the_end_leaves_the_earlier_files(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.jsonl", row(1)), write(tmp_path / "b.jsonl", "x\n")
    out = tmp_path / "out"
    prepare(Job("ifeval", (good,), out))
    before = (out / "eval.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"no row of .*b.jsonl became a prompt.*'unreadable': 1"):
        prepare(Job("ifeval", (bad,), out, overwrite=True))
    assert (out / "eval.jsonl").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["eval.jsonl", "report.json"]


def test_own_splits_and_leakage_between_them(tmp_path: Path) -> None:
    """Of equal questions the test split keeps its own, then validation; case does not matter."""
    train = write(
        tmp_path / "train.jsonl",
        question("A?"), question("b  ?"), question("C?"), question("D?"),
        question("D?", "Is short."),
    )  # fmt: skip
    val = write(tmp_path / "val.jsonl", question("c?"), question("E?"))
    test = write(tmp_path / "test.jsonl", question("B ?"), question("e?"))
    out = tmp_path / "out"
    inputs = (replace(train, split="train"), replace(val, split="val"), replace(test, split="test"))
    report = prepare(Job("rar_medicine", inputs, out))
    asked = {
        name: [p.messages[0].content for p in load_prompts(str(out / f"{name}.jsonl"))]
        for name in ("train", "validation", "eval")
    }
    assert asked == {"train": ["A?", "D?", "D?"], "validation": ["c?"], "eval": ["B ?", "e?"]}
    assert report["rejected"] == {
        "prompt of train is also in eval": 1,
        "prompt of train is also in validation": 1,
        "prompt of validation is also in eval": 1,
    }
    rejected = [(r["split"], r["row"]) for r in lines(out / "rejected.jsonl")]
    assert rejected == [("train", 2), ("train", 3), ("val", 2)]
    with pytest.raises(ValueError, match="cannot tell what the split 'part2' is for"):
        prepare(Job("rar_medicine", (replace(train, split="part2"),), tmp_path / "x"))


def test_prompts_of_a_benchmark_are_kept_out_of_training(tmp_path: Path) -> None:
    benchmark = write(tmp_path / "benchmark.jsonl", row(1))
    prepare(Job("ifeval", (benchmark,), tmp_path / "ifeval"))
    mine = write(tmp_path / "mine.jsonl", row(7, "WRITE 1."), row(2), row(3))
    held_out = str(tmp_path / "ifeval" / "eval.jsonl")
    job = Job("ifeval", (mine,), tmp_path / "out", eval_share=0.0, keep_out=(held_out,))
    assert prepare(job)["rejected"] == {f"prompt of train is also in {held_out}": 1}
    assert ids(tmp_path / "out" / "train.jsonl") == ["ifeval-2", "ifeval-3"]


def test_responses_in_the_rows_become_rows_to_score(tmp_path: Path) -> None:
    given = write(
        tmp_path / "in.jsonl",
        row(1) | {"response": "So."}, row(2) | {"response": ["A.", "B."]}, row(3),
    )  # fmt: skip
    job = Job("ifeval", (given,), tmp_path / "out", responses="response")
    prepare(job)
    scored = load_responses(str(tmp_path / "out" / "responses.jsonl"))
    assert [(r.prompt.id, r.texts) for r in scored] == [
        ("ifeval-1", ("So.",)),
        ("ifeval-2", ("A.", "B.")),
    ]
    assert [r.prompt.extra for r in scored] == [{}, {}]
    assert ids(tmp_path / "out" / "eval.jsonl") == ["ifeval-1", "ifeval-2", "ifeval-3"]
    with pytest.raises(ValueError, match="no row has responses under 'answer'; the first has key"):
        prepare(replace(job, responses="answer", overwrite=True))


def test_a_lone_validation_split_is_held_out(tmp_path: Path) -> None:
    given = (
        replace(write(tmp_path / "a.jsonl", question("A?")), split="train"),
        replace(write(tmp_path / "b.jsonl", question("B?")), split="validation"),
    )
    assert prepare(Job("rar_science", given, tmp_path / "out"))["rows"] == {
        "in": 2,
        "train": 1,
        "eval": 1,
        "rejected": 0,
    }


def test_a_lone_train_split_says_nothing_about_what_is_held_out(tmp_path: Path) -> None:
    """The Hub calls everything without splits so: a benchmark must not become training data."""
    given = (replace(write(tmp_path / "a.jsonl", *map(row, range(4))), split="train"),)
    rows = prepare(Job("ifeval", given, tmp_path / "benchmark"))["rows"]
    assert rows == {"in": 4, "eval": 4, "rejected": 0}
    rows = prepare(Job("ifeval", given, tmp_path / "half", eval_share=0.5))["rows"]
    assert rows == {"in": 4, "train": 2, "eval": 2, "rejected": 0}


def test_a_share_to_hold_out_beside_a_split_that_is_held_out_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", row(1)), write(tmp_path / "b.jsonl", row(2))
    inputs = (replace(one, split="train"), replace(two, split="test"))
    with pytest.raises(ValueError, match=r"eval share is 0.1, .* already \(test, train\)"):
        prepare(Job("ifeval", inputs, tmp_path / "out", eval_share=0.1))


def test_numbered_ids_avoid_those_that_are_given(tmp_path: Path) -> None:
    given = write(tmp_path / "a.jsonl", *(row(name, f"{n} owls") for n, name in
                  enumerate(("a", "a", "a#2", "a"))))  # fmt: skip
    prepare(Job("ifeval", (given,), tmp_path / "out"))
    expected = ["ifeval-a", "ifeval-a#3", "ifeval-a#2", "ifeval-a#4"]
    assert ids(tmp_path / "out" / "eval.jsonl") == expected


def test_files_of_every_kind_give_the_same_rows(tmp_path: Path) -> None:
    rows = [row("1"), row("2")]
    plain = write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(Path(plain.place).read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.json").write_text(json.dumps({"one": rows[:1], "two": rows[1:]}))
    (tmp_path / "e.json").write_text(Path(plain.place).read_text())  # lines under another name
    with_params = [r | {"kwargs": [{"num_words": None}]} for r in rows]
    pq.write_table(pa.Table.from_pylist(with_params), tmp_path / "f.parquet")
    expected: bytes | None = None
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.json", "e.json", "f.parquet"):
        out = tmp_path / f"out_{name}"
        prepare(Job("ifeval", (Input(str(tmp_path / name)),), out))
        found = (out / "eval.jsonl").read_bytes()
        expected = expected or found
        assert found == expected, name


def test_folder_of_data_files_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call as for a Hub name. Rows of one file differ in shape, as HIR-16K's do."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    truth = {"constraints": [["Length", "Words", "At most 5 words"]], "constraint_pattern": "p"}
    code = {"checker": ["[llm] Is kind."], "functions": ["def f(): ..."]}
    shared = {"criteria": ["Is kind."], "prompt": "A."}
    write(
        folder / "train.jsonl",
        shared | {"id": 1, "source": "type3", "ground_truth": truth},
        shared | {"id": 2, "source": "type4", "ground_truth": code},
    )
    row_1 = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write(
        folder / "test.jsonl", {"id": 3, "prompt": "B.", "source": "type1", "ground_truth": row_1}
    )
    report = prepare(Job("hir", (Input(str(folder)),), tmp_path / "out"))
    assert report["rows"] == {"in": 3, "train": 2, "eval": 1, "rejected": 0}
    assert report["criteria"] | {"by_check": {}, "polarity": {}} == {
        "all": 3, "rule": 2, "judge": 1, "per_prompt": 1.0, "by_check": {}, "polarity": {},
    }  # fmt: skip
    only = prepare(Job("hir", (Input(str(folder), split="train"),), tmp_path / "train"))
    assert only["rows"]["in"] == 2
    with pytest.raises(ValueError, match="no split 'dev', it has train, test"):
        prepare(Job("hir", (Input(str(folder), split="dev"),), tmp_path / "dev"))


def test_prompt_lengths_and_dropping_of_long_ones(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", eos_token="<eos>")
    given = write(tmp_path / "in.jsonl", *(row(n, "hi " * n) for n in (1, 2, 3, 8)))
    job = Job("ifeval", (given,), tmp_path / "out", tokenizer=tokenizer, max_prompt_tokens=5)
    tokens = prepare(job)["prompt_tokens"]
    assert tokens == {  # the template adds 3 tokens
        "p50": 5, "p90": 11, "p99": 11, "max": 11,
        "limit": 5, "over_limit": 2, "over_limit_ids": ["ifeval-3", "ifeval-8"],
    }  # fmt: skip
    report = prepare(replace(job, drop_long=True, overwrite=True))
    assert report["rejected"] == {"prompt too long": 2}
    assert report["prompt_tokens"]["max"] == 5
    assert ids(tmp_path / "out" / "eval.jsonl") == ["ifeval-1", "ifeval-2"]


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", row(1))
    job = Job("ifeval", (given,), tmp_path / "out")
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"source": "ifevil"}, "unknown source 'ifevil'"),
        ({"eval_share": 1.5}, "a part from 0 to 1"),
        ({"max_prompt_tokens": 5}, "needs a tokenizer"),
        ({"drop_long": True}, "only with a limit"),
        ({"inputs": (Input(str(tmp_path / "no.jsonl")),)}, "no such file"),
        ({"inputs": (Input("data/no.jsonl"),)}, "no such file"),
        ({"inputs": (write(tmp_path / "e.jsonl"),)}, "there are no rows"),
        ({"inputs": (write(tmp_path / "e.txt", "x"),)}, "unknown kind of file"),
        ({"inputs": (write(tmp_path / "e.parquet", "x"),)}, "is no Parquet file"),
        ({"inputs": (write(tmp_path / "e.jsonl.gz", "x"),)}, "cannot be read"),
    )
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            prepare(replace(job, **change))
    assert not (tmp_path / "out").exists()


def tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools/prepare_data.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | environment,
        timeout=HANG_S,
        check=False,
    )


def test_tool_prints_the_report_and_says_what_to_do_without_network(tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", row(1), row(2) | {"kwargs": []})
    out = str(tmp_path / "out")
    done = tool("ifeval", "--input", f"test={given.place}", "--out", out)
    assert done.returncode == 0, done.stderr
    for line in (
        "1  eval",
        "1  rejected",
        "1  kwargs is no list",
        "1  ifeval/punctuation:no_comma",
    ):
        assert line in done.stdout
    offline = tool("ifeval", "--input", "owner/name", "--out", out + "2", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "the Hub cannot be reached" in offline.stderr
    assert "hf download --repo-type dataset owner/name --local-dir downloads/name" in offline.stderr
    assert "Traceback" not in offline.stderr
