"""IFEval checks: cases by hand, and parity with the reference verdicts where data is at hand."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.rubrics.checks.local import Mode
from tests.unit.rubrics.check_cases import follows, instruction_parity, skip_without_data


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
        (
            "length_constraints:number_words",
            {"num_words": 2, "relation": "less than"},
            "\u0939\u093f\u0928\u094d\u0926\u0940",  # "Hindi": one word, vowel signs in it
            "one two",
        ),
        (
            "length_constraints:number_sentences",
            {"num_sentences": 2, "relation": "at least"},
            "Dr. Owl rests. Ferns grow.",
            "Dr. Owl rests by the river.",
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 3, "capital_relation": "less than"},
            "I saw a WELL-KNOWN owl.",  # I, WELL-KNOWN
            "I saw A BIG owl.",
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
    skip_without_data(f"ifeval/{check}")
    assert follows(f"ifeval/{check}", good, params)
    assert not follows(f"ifeval/{check}", bad, params)


def test_chinese_answers_need_no_full_stop() -> None:
    check = "ifeval/detectable_format:constrained_response"
    my_answer_is = "\u6211\u7684\u7b54\u6848\u662f"
    assert follows(check, f"{my_answer_is}\u4e0d\u786e\u5b9a", {})
    assert not follows(check, my_answer_is, {})


def test_text_without_letters_passes_any_language() -> None:
    assert follows("ifeval/language:response_language", "12345", {"language": "de"})


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_parity_with_the_reference_verdicts(mode: Mode) -> None:
    """At least 99.8 % of the comparable verdicts, prompt totals within 1.

    Measured: none of 830 differs in either mode. Left out are letters other than a-z (two, for
    which the reference draws a random letter) and two rows on which its langdetect was unseeded.
    """
    parity = instruction_parity("ifeval", mode)
    assert parity.compared == 830
    assert len(parity.differences) <= 0.002 * parity.compared, parity.differences
    assert abs(parity.prompts - parity.reference_prompts) <= 1
