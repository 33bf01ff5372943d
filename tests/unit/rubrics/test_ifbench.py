"""IFBench checks of counts, words and sentences by hand, and parity of all with the reference."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.rubrics.checks import registry
from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.rubrics.checks.words import sentences
from herl_megatron.types import Criterion
from tests.unit.rubrics.check_cases import follows, instruction_parity, skip_without_data

PALINDROMES = "level radar civic kayak refer rotor madam tenet stats solos"

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "a well-known", "a b c d"),
    ("count:unique_word_count", {"N": 2}, "Owl owl, fern", "Owl, owl!"),
    ("count:conjunctions", {"small_n": 3}, "And it and they, or so", "and this and that"),
    ("count:conjunctions", {"small_n": 2}, "and, and", "and and"),  # spellings tell them apart
    ("count:person_names", {"N": 2}, "Emma met Noah", "emma met Noah"),
    ("count:numbers", {"N": 2}, "1,000 owls in 2-3 trees", "1 owl, 2 ferns, 3 oaks"),
    ("count:punctuation", {}, "A. B, C! D? E; F: G?!", "A. B, C; F: G?!"),  # the pair is used up
    ("count:punctuation", {}, "A. B, C! D? E; F: \u203d", "A. B, C! D? E; F:"),
    ("count:pronouns", {"N": 3}, "He/she knows; it's here", "He knows her"),
    ("count:words_japanese", {"N": 2}, "an \u732b and \u72ac 5 7", "an owl and \u72ac"),
    (
        "count:keywords_multiple",
        {f"keyword{n}": word for n, word in enumerate("abcde", start=1)},
        "A BB ccc ddddd eeeeeee",
        "A BB ccc ddddd eeeeeeee",
    ),
    ("ratio:stop_words", {"percentage": 50}, "The quick owl and fern", "the and of owl"),
    ("ratio:sentence_type", {}, "Owls rest. Ferns grow. Do they?", "Owls rest. Do they?"),
    ("ratio:sentence_balance", {}, "Owls rest. Do they? Yes!", "Owls rest. Do they?"),
    ("ratio:sentence_words", {}, "An owl. My oak? Go now!", "An owl. My oak? Go!"),
    # Trigrams of "abcde": abc bcd cde; two of them in the reference.
    ("ratio:overlap", {"reference_text": "abcd", "percentage": 68}, "abcde", "abcdefg"),
    ("words:alphabet", {}, "Yes, zebras are big", "A big dog"),
    ("words:vowel", {}, "An owl sat", "An owl\nsat"),
    ("words:vowel", {}, "An owl sat", "An owl sits under"),
    ("words:consonants", {}, "the nymph rests", "an owl sat"),  # th, mph; "sat" has none
    ("words:palindrome", {}, PALINDROMES, PALINDROMES.replace("solos", "noon")),
    ("words:prime_lengths", {}, "An owl, quiet", "An owls"),
    ("words:start_verb", {}, "Write about owls.", "The owls rest."),
    ("words:repeats", {"small_n": 2}, "Owl, owl fern", "owl Owl owl."),
    ("words:odd_even_syllables", {}, "Owl river tree", "River tree owl"),
    ("words:last_first", {}, "I saw time. Time flies.", "I saw time. Time, flies."),
    ("words:paragraph_last_first", {}, "Owls rest, owls.\n\nA b a", "Owls rest.\n\nA b a"),
    ("words:paragraph_last_first", {}, "one", "a a\n***"),
    ("words:no_consecutive", {}, "An owl rests", "An owl Only"),
    (
        "words:keywords_specific_position",
        {"keyword": "oak", "n": 2, "m": 3},
        "An owl. Well, oak.",  # the comma is the second token
        "An owl. Well, Oak.",
    ),
    ("words:words_position", {"keyword": "owl"}, "An owl or owl.", "An owl or owl"),
    ("sentence:alliteration_increment", {}, "An oak. Big bear.", "Big bear. Six seals."),
    # A run of three is 3, two pairs are 4.
    (
        "sentence:alliteration_increment",
        {},
        "Big bad bear. Six seals to trees.",
        "Big bad bear. Six sad seals.",
    ),
    ("sentence:keyword", {"word": "OAK", "N": 2}, "An owl. Oaken doors.", "An oak. A door."),
    ("sentence:increment", {"small_n": 1}, "One. Two two - . Three of it.", "One. Two."),
]


@pytest.mark.parametrize(("check", "params", "good", "bad"), CASES)
def test_cases(check: str, params: dict[str, Any], good: str, bad: str) -> None:
    skip_without_data(f"ifbench/{check}")
    assert follows(f"ifbench/{check}", good, params)
    assert not follows(f"ifbench/{check}", bad, params)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Dr. Owl paid 3.5 coins at owl.com. It left.",
            ["Dr. Owl paid 3.5 coins at owl.com.", "It left."],
        ),
        ("Wait... what", ["Wait...", "what"]),
        ('He said "Go." They went.', ['He said "Go".', "They went."]),
        ("From the U.S. They sailed.", ["From the U.S.", "They sailed."]),
        ("Ask J. Owl, Ph.D. or Fern Inc. now", ["Ask J. Owl, Ph.D. or Fern Inc. now"]),
        ("Really?! Yes", ["Really?", "!", "Yes"]),
        ("One.\nTwo.", ["One.", "Two."]),
    ],
)
def test_sentences_are_cut_as_in_the_benchmark(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    "check",
    ["ratio:stop_words", "words:alphabet", "ratio:overlap", "format:emoji", "words:last_first"],
)
def test_where_the_reference_raises_nothing_is_followed(check: str) -> None:
    params: dict[str, dict[str, Any]] = {
        "ratio:stop_words": {"percentage": 100},
        "ratio:overlap": {"reference_text": "!", "percentage": 100},
    }
    skip_without_data(f"ifbench/{check}")
    assert not follows(f"ifbench/{check}", "!!", params.get(check, {}))


def test_every_instruction_type_is_there() -> None:
    names = [name for name in registry.names() if name.startswith("ifbench/")]
    assert len(names) == 58


@pytest.mark.parametrize(
    ("check", "params", "text"),
    [
        ("count:numbers", {"N": 5.0}, "Include exactly 5 numbers."),
        ("words:repeats", {"small_n": 2.0}, "Use no word more than 2 times."),
        (
            "format:options",
            {"options": "yes/no"},
            "Answer with exactly one of these options: yes/no",
        ),
    ],
)
def test_descriptions_state_the_parameters(check: str, params: dict[str, Any], text: str) -> None:
    criterion = Criterion("c", "rule", check=f"ifbench/{check}", params=params)
    assert registry.describe(criterion) == text


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_parity_with_the_reference_verdicts(mode: Mode) -> None:
    """At least 99.5 % of the comparable verdicts, prompt totals within 1.

    Measured: none of 334 differs in either mode. Left out is the one row on which the reference
    draws a random start of the span.
    """
    parity = instruction_parity("ifbench", mode)
    assert parity.compared == 334
    assert len(parity.differences) <= 0.005 * parity.compared, parity.differences
    assert abs(parity.prompts - parity.reference_prompts) <= 1
