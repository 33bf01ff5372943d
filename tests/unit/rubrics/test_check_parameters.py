"""Parameters as the benchmarks take them, and those that all responses, or none, would satisfy."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.rubrics.checks import registry
from herl_megatron.types import Criterion, Message, Prompt, Rubric, Verdict
from tests.unit.rubrics.check_cases import follows, run


@pytest.mark.parametrize(
    ("check", "params", "followed", "not_followed"),
    [
        ("ifeval/keywords:frequency",
         {"keyword": "time ", "frequency": 2, "relation": "at least"}, "time, time.", "time, tim."),
        ("ifeval/detectable_content:postscript", {"postscript_marker": "P.S. "},
         "Text.\nP. S. more", "Text. PS more"),
        ("ifeval/detectable_content:postscript", {"postscript_marker": " P.P.S"},
         "p.p. s here", "p.s. here"),
        ("ifeval/detectable_format:multiple_sections",
         {"section_spliter": "SECTION ", "num_sections": 2}, "SECTION1 a SECTION2 b", "SECTION1 a"),
        ("ifbench/count:keywords_multiple",
         {"keyword1": " story ", "keyword2": "b ", "keyword3": "c", "keyword4": "d",
          "keyword5": "e"},
         "story. bb ccc ddddd eeeeeee", " story  bb ccc ddddd eeeeee"),
        ("ifbench/words:words_position", {"keyword": " owl"}, "An owl sees an owl.", "Owl owls."),
        ("ifbench/words:keywords_specific_position", {"keyword": "owl ", "n": 1, "m": 2},
         "An owl.", "owl an."),
        ("ifbench/format:line_indent", {}, "a\n\n b", "a\n \n\tb"),
        ("ifbench/format:line_indent", {}, "a\n\n ", "a\n \n\t"),
    ],
)  # fmt: skip
def test_parameters_and_lines_as_the_reference_takes_them(
    check: str, params: dict[str, Any], followed: str, not_followed: str
) -> None:
    assert follows(check, followed, params)
    assert not follows(check, not_followed, params)


def test_private_use_characters_end_no_sentence() -> None:
    """Inside, they mark dots and the ends of sentences."""
    one = "An owl \ue001 sees \ue000 a mouse"
    assert follows("ifbench/sentence:keyword", one, {"word": "mouse", "N": 1})
    assert not follows("ifbench/sentence:keyword", one, {"word": "mouse", "N": 2})
    assert follows("ifbench/sentence:keyword", one, {"word": "owl \ue001 sees \ue000 a", "N": 1})
    assert follows("ifbench/ratio:sentence_type", "Owls. Mice. Who\ue000?", {})


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("ifeval/language:response_language", {"language": "zh-cn"}, "write zh"),
    ("ifeval/language:response_language", {"language": "English"}, "use one of af, ar"),
    ("ifeval/language:response_language", {"language": "en "}, "'en '"),
    ("text/language", {"language": "EN"}, "'EN'"),
    ("ifeval/keywords:frequency", {"keyword": "", "frequency": 2, "relation": "at least"}, "blank"),
    ("ifeval/keywords:frequency", {"keyword": "a", "frequency": 0, "relation": "less than"},
     "no response has less than 0"),
    ("ifeval/keywords:frequency", {"keyword": "a", "frequency": 0, "relation": "at least"},
     "every response has at least 0"),
    ("ifeval/keywords:existence", {"keywords": ["a", " "]}, "blank"),
    ("ifeval/keywords:existence", {"keywords": ["b*"]}, "found in every text"),
    ("ifeval/keywords:forbidden_words", {"forbidden_words": [""]}, "blank"),
    ("ifeval/keywords:forbidden_words", {"forbidden_words": ["(?i)x"]},
     "is not a regular expression"),
    ("ifeval/combination:repeat_prompt", {"prompt_to_repeat": ""}, "blank"),
    ("ifeval/startend:end_checker", {"end_phrase": "\n"}, "blank"),
    ("ifeval/detectable_content:postscript", {"postscript_marker": " "}, "blank"),
    ("ifeval/detectable_content:number_placeholders", {"num_placeholders": 0}, "greater than"),
    ("ifeval/length_constraints:number_words", {"num_words": 0, "relation": "less than"},
     "less than 0 words"),
    ("ifeval/length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 4, "first_word": "a"}, "no paragraph 4 of 2"),
    ("ifeval/length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "it's"}, "\"it's\" is no word"),
    ("ifbench/sentence:keyword", {"word": "", "N": 1}, "blank"),
    ("ifbench/count:word_count_range", {"min_words": 9, "max_words": 8}, "between 9 and 8"),
    ("ifbench/count:person_names", {"N": 51}, "less than or equal to 50"),
    ("ifbench/count:keywords_multiple",
     {"keyword1": "a", "keyword2": "ab", "keyword3": "c", "keyword4": "d", "keyword5": "e"},
     "'ab' 2 times gives more than 1 times 'a'"),
    ("ifbench/words:words_position", {"keyword": "two words"}, "several words"),
    ("ifbench/repeat:repeat_span", {"prompt_to_repeat": "a b", "n_start": 2, "n_end": 9},
     "words 2 to 9 of 2 are none"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "params", "why"), IMPOSSIBLE)
def test_what_nobody_or_everybody_does_is_refused_with_its_row(
    tmp_path: Path, check: str, params: dict[str, Any], why: str
) -> None:
    rubric = Rubric((Criterion("c", "rule", check=check, params=params),))
    row = row_from_prompt(Prompt("p", (Message("user", "Write."),), rubric))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*criterion 'c'.*(?:{why})"):
        load_prompts(str(path))
    result = registry.run_check(rubric.criteria[0], "any text")
    assert result.for_every_response and result.reason


def test_patterns_are_looked_at_as_they_are_used() -> None:
    backslash = Criterion(
        "c", "rule", check="ifeval/keywords:forbidden_words", params={"forbidden_words": ["\\\\"]}
    )
    assert registry.parameter_problem(backslash) == ""


@pytest.mark.parametrize("keyword", ["$5", "C++", ".NET", "(a", "*", "what?"])
def test_keywords_of_ones_own_are_meant_letter_by_letter(keyword: str) -> None:
    for text in (f"It is {keyword} here", f"{keyword}", f"({keyword})", keyword.lower()):
        assert follows("text/keywords", text, {"keywords": [keyword]}), text
        assert not follows("text/forbidden_words", text, {"forbidden_words": [keyword]})
    assert not follows("text/keywords", "It is here: aaaa 55 C", {"keywords": [keyword]})


def test_keywords_of_ones_own_are_whole_words() -> None:
    for text in ("$50", "xC", "owls", "a\u00e9owl"):
        for keyword in ("$5", "C", "owl"):
            assert not follows("text/keywords", text, {"keywords": [keyword]}), (keyword, text)
    assert not follows("text/keywords", "OWL", {"keywords": ["owl"], "match_case": True})
    twice = {"keyword": " C++ ", "frequency": 2, "relation": "at least"}
    assert follows("text/keyword_frequency", "C++, c++", twice)
    assert not follows("text/keyword_frequency", "C++, c", twice)


def test_text_without_letters_is_in_no_language_of_ones_own() -> None:
    english = {"language": "en"}
    assert follows("ifeval/language:response_language", "12345", english)  # as the benchmark has it
    assert not follows("text/language", "12345", english)
    assert follows("text/language", "The owl sees the mouse in the dark wood.", english)


def test_time_grows_with_the_text_alone() -> None:
    start = time.perf_counter()
    for check, params in (
        ("ifeval/detectable_content:number_placeholders", {"num_placeholders": 3}),
        ("ifeval/detectable_format:title", {}),
        ("ifeval/detectable_format:number_bullet_lists", {"num_bullets": 1}),
        ("ifbench/format:line_indent", {}),
    ):
        for text in (
            "[" * 200_000,
            "<" * 200_000,
            "\n" * 200_000,
            " \n\n" * 60_000,
            "<<a" * 70_000,
        ):
            assert run(check, text + "x", params).verdict is not Verdict.UNVERIFIABLE
    assert time.perf_counter() - start < 20  # each took minutes
