"""`herl score` of benchmarks' rows: their own metrics, and the rollouts of a run scored again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.responses import load_responses
from herl_megatron.data.sources.common import Options, SourceRow
from herl_megatron.data.sources.muldimif import convert_muldimif
from herl_megatron.observability.rollout_log import group_record, write_rollouts
from herl_megatron.types import Criterion, Message, Prompt, Rubric, ScoredGroup
from tests.unit.hindsight.groups import make_group
from tests.unit.rubrics.check_cases import reference_rows
from tests.unit.score.score_cases import NO_COMMA, read_totals, row, score, scored, write

LOWER = {"id": "lower", "kind": "rule", "check": "ifeval/change_case:english_lowercase"}
OF_IFEVAL = [
    # Follows one of two instructions, and both without its first line.
    row("a", [NO_COMMA, LOWER], response="sure, here it is\nthe whole answer in lower case")
    | {"source": "ifeval"},
    row("b", [NO_COMMA], response="None at all.") | {"source": "ifeval"},
    row("c", [NO_COMMA], response="One, two.") | {"source": "mine"},
]
FOUR = {
    "prompt_strict": 1 / 2, "instruction_strict": 2 / 3, "prompt_loose": 1.0,
    "instruction_loose": 1.0,
}  # fmt: skip


def test_four_accuracies_in_one_pass(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", OF_IFEVAL)
    result = score(source, out := tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    (found,) = read_totals(out)["benchmarks"].items()
    assert found[0] == "ifeval" and found[1]["metrics"] == FOUR
    assert (found[1]["headline"], found[1]["prompts"]) == ("prompt_strict", 2)
    assert "IFEval prompt_strict 50.0" in " ".join(result.output.split())
    assert "IFEval: 2 prompts, the whole set has 541" in result.output
    assert scored(source, tmp_path / "loose.jsonl", "--mode", "loose").get("benchmarks") is None


def test_scores_without_loose_verdicts_get_them(tmp_path: Path) -> None:
    """An output of an earlier version goes on; its other rows are not made again."""
    source = write(tmp_path / "rows.jsonl", OF_IFEVAL)
    scored(source, out := tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [list(map(len, line.get("loose", []))) for line in lines] == [[2], [1], []]
    for line in lines:
        line.pop("loose", None)
    write(out, lines)
    assert scored(source, out)["benchmarks"]["ifeval"]["metrics"] == FOUR


def evaluated(tmp_path: Path, **changes: Any) -> Path:
    """A file as `herl eval` writes it: the responses t0 and t1 to one prompt."""
    criteria = (
        Criterion("c1", "rule", check="ifeval/keywords:existence", params={"keywords": ["t1"]}),
        Criterion("c2", "rule", check="ifeval/punctuation:no_comma", weight=3.0,
                  polarity="negative"),
    )  # fmt: skip
    prompt = Prompt(
        "p0", (Message("user", "Say hello."),), Rubric(criteria), source="ifbench",
        reference_answer="t1", extra={"difficulty": 2},
    )  # fmt: skip
    group = make_group([0.5, 0.25]).group
    scores = make_group([0.5, 0.25]).scores
    whole = ScoredGroup(replace(group, prompt=prompt), scores)
    path = tmp_path / "rollouts" / "eval.jsonl"
    write_rollouts(path, [group_record(whole) | changes])
    return path


def test_rollouts_of_an_evaluation_are_scored_again(tmp_path: Path) -> None:
    """Whole rows: of the weights 1 and 3 the second response earns 1, as a comma is wanted."""
    source = evaluated(tmp_path)
    (read,) = load_responses(str(source))
    assert read.texts == ("t0", "t1") and read.listed
    assert read.prompt.rubric.criteria[1].weight == 3.0
    assert (read.prompt.reference_answer, read.prompt.extra) == ("t1", {"difficulty": 2})
    totals = scored(source, out := tmp_path / "out.jsonl")
    rewards = [one["reward"] for one in json.loads(out.read_text())["responses"]]
    assert rewards == [0.0, 0.25] and totals["benchmarks"]["ifbench"]["responses"] == 2


def test_what_a_run_says_of_its_own_scores_decides_nothing(tmp_path: Path) -> None:
    (one,) = load_responses(str(evaluated(tmp_path)))
    (other,) = load_responses(str(evaluated(tmp_path, experiences_too_long=7)))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollouts": []}, "responses must be a list of texts, not []"),
        ({"rollouts": 3}, "rollouts must be a list of objects, not 3"),
        ({"rollouts": [{}]}, "responses[0] must be a text, not None"),
        ({"criteria": [{"id": "c1", "check": "x"}]}, "the key 'kind' is missing"),
        ({"messages": None}, "the key 'messages' is missing"),
    ],
)
def test_bad_groups_are_named_by_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    source = evaluated(tmp_path, **changes)
    result = score(source, tmp_path / "out.jsonl")
    assert result.exit_code == 2 and f"{source}:1: " in result.output and said in result.output


def test_groups_of_an_earlier_version_are_refused_with_the_fix(tmp_path: Path) -> None:
    source = evaluated(tmp_path)
    record = json.loads(source.read_text())
    del record["aggregation"]
    write(source, [record])
    result = score(source, tmp_path / "out.jsonl")
    assert result.exit_code == 2 and "an earlier version of herl wrote it" in result.output


@pytest.mark.parametrize(
    ("name", "prompts", "instructions", "loose"),
    [("ifeval", (394, 541), (665, 834), (403, 678)), ("ifbench", (77, 294), (96, 335), (84, 106))],
)
def test_real_responses_give_the_reference_accuracies(
    tmp_path: Path,
    name: str,
    prompts: tuple[int, int],
    instructions: tuple[int, int],
    loose: tuple[int, int],
) -> None:
    """Strict and loose at once, of prompts and of instructions. The reference draws some letters,
    spans and languages at random; ours leaves these instructions out: at most 3."""
    rows = [
        row(f"{name}-{item['key']}",
            [{"id": f"c{i}", "kind": "rule", "check": f"{name}/{check}", "params": params}
             for i, (check, params) in enumerate(
                 zip(item["instruction_id_list"], item["kwargs"], strict=True))],
            response=item["response"]) | {"source": name}
        for item in reference_rows(f"{name}_qwen25_7b.jsonl.gz")
    ]  # fmt: skip
    source = write(tmp_path / "rows.jsonl", rows)
    found = scored(source, tmp_path / "out.jsonl", "--workers", "1")["benchmarks"][name]
    assert found["prompts"] == prompts[1] and found["unscored"] == 0
    for level, strict, lenient in (("prompt", prompts, loose[0]),
                                   ("instruction", instructions, loose[1])):  # fmt: skip
        for mode, followed in (("strict", strict[0]), ("loose", lenient)):
            share = found["metrics"][f"{level}_{mode}"]
            assert abs(share * strict[1] - followed) <= 2.5, (level, mode)
    low, high = found["interval"]["prompt_strict"]
    assert low < prompts[0] / prompts[1] < high and 0.05 < high - low < 0.12


def test_real_muldimif_texts_give_the_reference_share(tmp_path: Path) -> None:
    """One real response to each of 614 items, prepared as `--benchmark` does: none is left out."""
    texts = {
        item["key"]: item
        for item in reference_rows("muldimif_verdicts.jsonl.gz")
        if item["text_name"] == "real0"
    }
    rows, items = [], list(reference_rows("muldimif_items.jsonl.gz"))
    for number, item in enumerate(items, start=1):
        prompt = convert_muldimif(SourceRow(number, item), Options(benchmark=True)).prompt
        rows.append(row_from_prompt(prompt) | {"response": texts[item["key"]]["response"]})
    source = write(tmp_path / "rows.jsonl", rows)
    found = scored(source, tmp_path / "out.jsonl", "--workers", "1")["benchmarks"]["muldimif"]
    met = [all(texts[item["key"]]["verdicts"]) for item in items]
    overall = found["metrics"]["overall"]
    assert found["prompts"] == len(met) and abs(overall * len(met) - sum(met)) <= 1
    assert found["notes"] == [f"{len(met)} prompts, the whole set has 1,200"]
    for kind, key in (("pattern", "constraint_pattern"), ("difficulty", "difficulty")):
        for name, part in found["parts"][kind].items():
            of = [m for m, item in zip(met, items, strict=True) if item[key] == name]
            assert part["n"] == len(of) and abs(part["value"] * len(of) - sum(of)) <= 1
    assert set(found["parts"]["category"]) == {"Content", "Format", "Language", "Length"}
