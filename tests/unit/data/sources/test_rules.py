"""Rule benchmarks and HIR-16K: which criteria a row becomes, and what happens to the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.data.sources.common import Options, RejectedRow
from herl_megatron.data.sources.prepare import Job, prepare
from herl_megatron.data.sources.read import Input
from herl_megatron.types import Criterion, Message
from tests.unit.data.sources.source_cases import convert

NO_COMMA = Criterion("c1", "rule", "ifeval/punctuation:no_comma")


def test_ifeval_row() -> None:
    prompt = convert(
        "ifeval",
        {
            "key": 1000,
            "prompt": "Write.",
            "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
            "kwargs": [{"num_words": None}, {"keywords": ["oak"], "frequency": None}],
            "note": "kept",
            "empty": None,
        },
    ).prompt
    assert prompt.id == "ifeval-1000" and prompt.source == "ifeval"
    assert prompt.messages == (Message("user", "Write."),)
    assert prompt.rubric.aggregation == "explicit"
    assert prompt.rubric.criteria == (
        NO_COMMA,
        Criterion("c2", "rule", "ifeval/keywords:existence", {"keywords": ["oak"]}),
    )
    assert prompt.extra == {"note": "kept"}


def test_ifbench_row_reads_json_text_and_numbers_that_are_whole() -> None:
    row = {
        "key": "3",
        "prompt": [{"from": "human", "value": "Write."}],
        "instruction_id_list": ["count:numbers"],
        "kwargs": ['{"N": 5.0, "keyword": null}'],
    }
    prompt = convert("ifbench", row, Options(aggregation="all_or_nothing")).prompt
    assert prompt.messages == (Message("user", "Write."),)
    assert prompt.rubric.criteria == (Criterion("c1", "rule", "ifbench/count:numbers", {"N": 5.0}),)
    assert prompt.rubric.aggregation == "all_or_nothing"


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        ({"prompt": " "}, "prompt is no list", "' '"),
        ({"key": None}, "no text in key or id", "its keys are key, prompt"),
        ({"kwargs": [{}, {}]}, "lists of different length", "1 entries .* and 2 in kwargs"),
        ({"kwargs": None}, "kwargs is no list", "None"),
        ({"kwargs": ["{"]}, "kwargs is no object", "not JSON"),
        ({"prompt": [{"role": "ai", "content": "x"}]}, "unknown role", "'ai'"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}]},
            "last turn is not the user's",
            "assistant",
        ),
    ],
)
def test_bad_rows_are_rejected_by_kind(change: dict[str, Any], kind: str, detail: str) -> None:
    row = {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    with pytest.raises(RejectedRow, match=detail) as caught:
        convert("ifeval", row | change)
    assert caught.value.kind == kind


def test_muldimif_as_a_benchmark_keeps_every_row() -> None:
    row = {
        "id": 3,
        "conversations": [{"role": "user", "content": "Write."}],
        "constraints": [["Length", "Words", "Be concise"]],
    }
    with pytest.raises(RejectedRow, match="no number of words"):
        convert("muldimif", row)
    (criterion,) = convert("muldimif", row, Options(benchmark=True)).prompt.rubric.criteria
    assert criterion.params == {"text": "Be concise", "benchmark": True}


def test_muldimif_row_keeps_what_no_rule_can_read_and_says_so() -> None:
    row = {
        "id": 5,
        "conversations": [{"role": "user", "content": "Write."}],
        "constraints": [["Length", "Words", "At most 5 words"], ["Length", "Words", "Be concise"]],
        "difficulty": "Level 1",
    }
    converted = convert("muldimif", row)
    assert [c.params for c in converted.prompt.rubric.criteria] == [
        {"text": "At most 5 words"},
        {"text": "Be concise"},
    ]
    assert {c.check for c in converted.prompt.rubric.criteria} == {"muldimif/Length/Words"}
    assert converted.notes == ("rule text without a readable requirement: unverifiable",)
    assert converted.prompt.extra == {"difficulty": "Level 1"}
    with pytest.raises(RejectedRow, match="no number of words") as caught:
        convert("muldimif", row | {"constraints": [["Length", "Words", "Be concise"]]})
    assert caught.value.kind == "no criterion can be verified"


def hir(kind: str, truth: Any, *criteria: str) -> dict[str, Any]:
    return {"id": 9, "prompt": "W.", "source": kind, "criteria": [*criteria], "ground_truth": truth}


def test_hir_types_1_to_3_are_rules_in_the_words_of_the_row() -> None:
    truth = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}
    prompt = convert("hir", hir("type1", truth, "No commas.")).prompt
    assert prompt.id == "hir-9" and prompt.source == "hir/ifeval"
    assert prompt.rubric.criteria == (
        Criterion("c1", "rule", "ifeval/punctuation:no_comma", description="No commas."),
    )
    truth = {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 2}]}
    (criterion,) = convert("hir", hir("type2", truth, "Two numbers.")).prompt.rubric.criteria
    assert (criterion.check, criterion.params) == ("ifbench/count:numbers", {"N": 2})
    text = "At most 5 words"
    truth = {"constraints": [["Length", "Words", text]], "constraint_pattern": "Listing"}
    (criterion,) = convert("hir", hir("type3", truth, text)).prompt.rubric.criteria
    assert criterion == Criterion("c1", "rule", "muldimif/Length/Words", {"text": text})


def test_hir_rule_that_no_check_covers_goes_to_the_judge_or_is_left_out() -> None:
    truth = {
        "instruction_id_list": ["punctuation:no_comma", "punctuation:no_dash", "count:numbers"],
        "kwargs": [{}, {}, {}],
    }
    row = hir("type2", truth, "No commas.", "No dashes.", "Two numbers.")
    converted = convert("hir", row)
    assert [(c.id, c.kind, c.description) for c in converted.prompt.rubric.criteria] == [
        ("c1", "judge", "No commas."),  # IFBench has no such check, whatever IFEval has
        ("c2", "judge", "No dashes."),
        ("c3", "judge", "Two numbers."),  # its parameter is missing
    ]
    assert converted.notes == (
        "unknown check: to the judge",
        "unknown check: to the judge",
        "unusable rule: to the judge",
    )
    with pytest.raises(RejectedRow, match="unknown check: left out; unusable rule") as caught:
        convert("hir", row, Options(judge=False))
    assert caught.value.kind == "no criterion left"


def test_hir_code_is_neither_run_nor_kept(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()"
    truth = {"checker": ["[rule] Has a title", "[llm] Is kind"], "functions": [code, ""]}
    converted = convert("hir", hir("type4", truth, "Give a title.", ""))
    assert [(c.id, c.kind, c.description) for c in converted.prompt.rubric.criteria] == [
        ("c1", "judge", "Give a title."),
        ("c2", "judge", "Is kind"),  # no words of its own: the checker's
    ]
    assert converted.notes == (
        "rule as code, never run: to the judge",
        "marked for a judge: to the judge",
    )
    assert not ran.exists() and "open(" not in repr(converted)


def test_hir_rows_in_the_trainers_form() -> None:
    truth = '{"instruction_id_list": [["Length", "Words", "At most 5 words"]]}'
    row = {
        "data_source": "muldimif",
        "prompt": [{"role": "user", "content": "W."}],
        "reward_model": {"style": "rule", "ground_truth": truth},
    }
    prompt = convert("hir", row).prompt
    assert prompt.id == "hir-7"  # the row's number
    assert prompt.rubric.criteria[0].params == {"text": "At most 5 words"}
    with pytest.raises(RejectedRow, match="'type5'"):
        convert("hir", row | {"source": "type5"})


def test_hir_takes_the_types_that_are_asked_for(tmp_path: Path) -> None:
    rules = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    code = {"checker": ["[llm]x"], "functions": [""]}
    rows = [
        {"id": 1, "prompt": "A.", "source": "type1", "ground_truth": rules},
        {"id": 4, "prompt": "B.", "source": "type4", "ground_truth": code, "criteria": ["Is B."]},
    ]
    path = tmp_path / "hir.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = Job("hir", (Input(str(path)),), tmp_path / "out", eval_share=0.0)
    report = prepare(replace(job, options=Options(types=("type1", "type2"))))
    assert report["rejected"] == {"row of another type": 1}
    assert report["sources"] == {"train": {"hir/ifeval": 1}}
    everything = prepare(replace(job, out=tmp_path / "all"))
    assert everything["sources"] == {"train": {"hir/code": 1, "hir/ifeval": 1}}
    with pytest.raises(ValueError, match="'5' is unknown; HIR-16K has type1, type2"):
        prepare(replace(job, out=tmp_path / "none", options=Options(types=("5",))))
    with pytest.raises(ValueError, match="HIR-16K's; 'ifeval' has none"):
        prepare(replace(job, source="ifeval", options=Options(types=("type1",))))
