"""Prepared rows carry every instruction of the source: they score real responses as it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.data.sources.prepare import Job, prepare
from herl_megatron.data.sources.read import Input
from herl_megatron.data.sources.report import Report
from herl_megatron.rubrics.checks import registry
from herl_megatron.types import Prompt, Verdict
from tests.unit.rubrics.check_cases import Parity, reference_rows, skip_without_data


def prepared(benchmark: str, file: str, out: Path) -> tuple[list[Prompt], Report]:
    if not os.environ.get("HERL_DATA_DIR"):
        pytest.skip("HERL_DATA_DIR is not set: no real rows to prepare")
    given = Input(str(Path(os.environ["HERL_DATA_DIR"]) / file))
    report = prepare(Job(benchmark, (given,), out))
    return load_prompts(str(out / "eval.jsonl")), report


@pytest.mark.parametrize(
    ("benchmark", "prompts", "instructions"),
    [("ifeval", (394, 541), (665, 834)), ("ifbench", (77, 294), (96, 335))],
)
def test_real_responses_score_as_in_the_reference(
    tmp_path: Path, benchmark: str, prompts: tuple[int, int], instructions: tuple[int, int]
) -> None:
    """Totals of the reference. Where it is random itself, its own verdict is taken."""
    file = f"{benchmark}_qwen25_7b.jsonl.gz"
    rows, report = prepared(benchmark, file, tmp_path)
    skip_without_data("ifeval/length_constraints:number_sentences")
    assert report["rows"] == {"in": prompts[1], "eval": prompts[1], "rejected": 0}
    assert report["unverifiable_here"] == {}
    followed = followed_prompts = counted = 0
    for prompt, source in zip(rows, reference_rows(file), strict=True):
        assert prompt.messages[0].content == source["prompt"]
        random_in_reference = source["do_not_compare"] or [None] * len(source["strict"])
        verdicts = []
        for criterion, expected, reason in zip(
            prompt.rubric.criteria, source["strict"], random_in_reference, strict=True
        ):
            result = registry.run_check(criterion, source["response"])
            verdicts.append(expected if reason else result.verdict is Verdict.FOLLOWED)
        counted += len(verdicts)
        followed += sum(verdicts)
        followed_prompts += all(verdicts)
    assert (followed_prompts, len(rows)) == prompts
    assert (followed, counted) == instructions


def test_real_muldimif_texts_score_as_in_the_reference(tmp_path: Path) -> None:
    """Of the four real responses per item; three items hold nothing that a rule can read."""
    rows, report = prepared("muldimif", "muldimif_items.jsonl.gz", tmp_path)
    assert report["rows"] == {"in": 614, "eval": 611, "rejected": 3}
    assert report["criteria"]["all"] >= 2130
    rubrics = {prompt.id: prompt.rubric for prompt in rows}
    parity = Parity()
    for source in reference_rows("muldimif_verdicts.jsonl.gz"):
        rubric = rubrics.get(f"muldimif-{source['key']}")
        if rubric is None or not source["text_name"].startswith("real"):
            continue
        parity.add_prompt(
            source["key"],
            [
                (criterion.check, registry.run_check(criterion, source["response"]), expected)
                for criterion, expected in zip(rubric.criteria, source["verdicts"], strict=True)
            ],
        )
    assert parity.compared >= 8000
    assert len(parity.differences) <= 0.01 * parity.compared, parity.differences
    assert abs(parity.prompts - parity.reference_prompts) <= 1
