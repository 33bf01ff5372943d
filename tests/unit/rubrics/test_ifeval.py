"""IFEval checks: cases by hand, and parity with the reference verdicts where data is at hand."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rubrics.checks import registry
from herl_megatron.types import Criterion, Verdict


def follows(check: str, response: str, **params: Any) -> bool:
    result = registry.run_check(
        Criterion("c", "rule", check=f"ifeval/{check}", params=params), response
    )
    assert result.verdict is not Verdict.UNVERIFIABLE, result.reason
    return result.verdict is Verdict.FOLLOWED


@pytest.mark.parametrize(
    ("check", "params", "good", "bad"),
    [
        ("keywords:existence", {"keywords": ["Oak", "fern"]}, "Ferns under an oak.", "An oak."),
        (
            "keywords:frequency",
            {"keyword": "oak", "frequency": 2, "relation": "at least"},
            "Oaks and an oak.",  # substring, any case
            "One oak.",
        ),
        (
            "keywords:frequency",
            {"keyword": "oak", "frequency": 2, "relation": "less than"},
            "One oak.",
            "oak oak",  # less than is strict
        ),
        ("keywords:forbidden_words", {"forbidden_words": ["oak"]}, "Oaks soak.", "The OAK."),
        (
            "keywords:letter_frequency",
            {"letter": "E", "let_frequency": 3, "let_relation": "at least"},
            "Eve sees.",
            "Eve.",
        ),
        (
            "length_constraints:number_words",
            {"num_words": 4, "relation": "less than"},
            "well-known owl",  # \w+ runs: well, known, owl
            "a well-known owl",
        ),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "A\n***\nB", "A *** *** B"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "***\nA\n***", "A***B"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Owls"},
            'A fern.\n\n"owls, too" rest.',
            "A fern.\n\nThe owls rest.",
        ),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a] b]"),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.S."},
            "Hi.\np. s. Bye",
            "PS Bye",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": 2},
            "* a\n - b",
            "* a\n** b\n* c\n* d",
        ),
        ("detectable_format:constrained_response", {}, "My answer is no.", "My answer is no"),
        (
            "detectable_format:number_highlighted_sections",
            {"num_highlights": 2},
            "*a* and **b** and *c*",
            "*a* and * * b",
        ),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "Day", "num_sections": 2},
            "Day 1 oak Day 2 fern",
            "day 1 oak Day 2 fern",
        ),
        ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
        ("detectable_format:title", {}, "<<Owls>>\nText", "<< >> <Owls>"),
        ("combination:two_responses", {}, "A\n******\nB", "A\n******\nA"),
        (
            "combination:repeat_prompt",
            {"prompt_to_repeat": "Say hi."},
            "say hi. Hi!",
            "Hi! Say hi.",
        ),
        (
            "startend:end_checker",
            {"end_phrase": "That is all."},
            '"So THAT is all."',
            "That is all!",
        ),
        ("startend:quotation", {}, ' "Owls." ', '"Owls.'),
        ("startend:quotation", {}, '""', '"'),
        ("punctuation:no_comma", {}, "owls; ferns", "owls, ferns"),
        (
            "change_case:english_capital",
            {},
            "THE OLD OWL RESTS BY THE QUIET RIVER.",
            "THE OLD OWL rests BY THE QUIET RIVER.",
        ),
        (
            "change_case:english_lowercase",
            {},
            "the old owl rests by the quiet river in the evening.",
            "die alte eule sitzt am ruhigen fluss in der nacht.",
        ),
        (
            "language:response_language",
            {"language": "de"},
            "Die alte Eule sitzt am ruhigen Fluss in der Nacht.",
            "The old owl rests by the quiet river in the evening.",
        ),
    ],
)
def test_cases(check: str, params: dict[str, Any], good: str, bad: str) -> None:
    assert follows(check, good, **params)
    assert not follows(check, bad, **params)


def test_parity_with_the_reference_verdicts() -> None:
    """State equality of at least 99.8 % over real responses, strict variant."""
    folder = os.environ.get("HERL_DATA_DIR")
    if not folder:
        pytest.skip("HERL_DATA_DIR is not set: no reference verdicts to compare with")
    compared, differences = Counter[str](), []
    with gzip.open(Path(folder) / "ifeval_qwen25_7b.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            random_in_reference = row["do_not_compare"] or [None] * len(row["strict"])
            for name, params, expected, reason in zip(
                row["instruction_id_list"],
                row["kwargs"],
                row["strict"],
                random_in_reference,
                strict=True,
            ):
                if reason or f"ifeval/{name}" not in registry.names():
                    continue
                compared[name] += 1
                if follows(name, row["response"], **params) != expected:
                    differences.append((row["key"], name))
    assert compared.total() >= 700, compared
    assert len(differences) <= 0.002 * compared.total(), differences
