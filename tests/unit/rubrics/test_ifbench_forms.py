"""IFBench checks of form, repetition and single requests by hand."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.rubrics.checks import ifbench_custom
from tests.unit.rubrics.check_cases import follows

CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},A,B,2000,{n}" for n in range(7))
PRODUCTS = 'ProductID,Category,Brand,Price,Stock\n1,"a&b",c,2,3\n' + "\n".join(
    f"{n},a,b,2,3" for n in range(13)
)
GRADES = "\n".join(
    "\t".join(f'"{field}"' for field in row)
    for row in (["StudentID", "Subject", "Grade", "Semester", "Score"], *["12345"] * 3)
)
QUESTIONS = "\n".join(
    f"Question {n}: {'Why ' * n}?\n" + "\n".join(f"{letter}) owl" for letter in "ABCDE")
    for n in range(1, 5)
)
# 52 lines from Zimbabwe down; an accent does not disturb the order.
AFRICA = "Zimbabwe\nS\u00e3o Tom\u00e9\n" + "\n".join(f"Land {n}" for n in range(99, 49, -1))
ALPHABET = " ".join(f"{letter}ne rests." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
REQUEST = "Write about an old owl"

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("format:parentheses", {}, "([{(( x )", "(((( x ))))"),
    ("format:parentheses", {}, "(] ((((( x )", "(((( (] x ))))"),  # a wrong bracket starts anew
    ("format:quotes", {}, '"a \'b "c" d\' e"', "\"a 'b' c\""),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe.", "maybe not"),
    ("format:options", {"options": "I know or I don't know"}, "i know", "or"),
    ("format:options", {"options": "a), b), c)"}, "b)", "B)"),
    ("format:newline", {}, "one\n\ntwo!", "one two"),
    ("format:emoji", {}, "Owls rest \U0001f989. Ferns grow \U0001f33f!", "Owls rest. Ferns grow."),
    ("format:emoji", {}, "Owls rest. \U0001f989 Ferns \U0001f33f", "Owls rest \U0001f989. Ferns"),
    ("format:line_indent", {}, "a\n b\n\n  c", "a\n b\n\n\n  c"),
    ("format:quote_unquote", {}, 'He said "go" and left', 'He said "go"'),
    ("format:quote_unquote", {}, "no quotes", '"one" "two" end'),
    ("format:list", {"sep": "!?!?"}, "!?!? a !?!? b", "!?!? a"),
    ("format:thesis", {}, "<i>Owls rest</i> because", "<i> </i> because"),
    ("format:thesis", {}, "<em></em>", "<i>Owls rest</i>"),
    ("format:sub-bullets", {}, "* a\n - b\n* c\n - d", "* a\n - b\n* c"),
    ("format:no_bullets_bullets", {}, "One. Two.\n\n* a\n* b", "One. Two.\n\n* a\n* b\n"),
    ("format:no_bullets_bullets", {}, "One.\nTwo.\n* a\n* b", "One.\n\nTwo.\n* a\n* b"),
    ("format:no_bullets_bullets", {}, "One. Two.\n* a\n* b", "One.\n* a\n* b"),
    ("format:title_case", {}, "The iPhone Of a King", "The owl"),
    (
        "format:output_template",
        {},
        "My Answer: a My Conclusion: b Future Outlook: c",
        "My Answer: a My conclusion: b Future Outlook: c",
    ),
    ("format:no_whitespace", {}, "owl-fern", "owl\u00a0fern"),
    ("repeat:repeat_change", {"prompt_to_repeat": REQUEST}, "B" + REQUEST[1:], REQUEST),
    (
        "repeat:repeat_change",
        {"prompt_to_repeat": REQUEST},
        "X" + REQUEST[1:],
        "Read" + REQUEST[5:],
    ),
    (
        "repeat:repeat_simple",
        {},
        " only output this sentence here, ignore all other requests.\n",
        "Only output this sentence.",
    ),
    (
        "repeat:repeat_span",
        {"prompt_to_repeat": REQUEST, "n_start": 1, "n_end": 3},
        "About an",
        "about an old",
    ),
    (
        "repeat:repeat_span",
        {"prompt_to_repeat": REQUEST, "n_start": 0, "n_end": 1},
        "write",
        "about",
    ),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("Why Why ?", "Why?")),
    ("custom:mcq_count_length", {}, QUESTIONS, "Here: " + QUESTIONS),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("E) owl", "", 1)),
    ("custom:reverse_newline", {}, "Here:\n" + AFRICA, AFRICA + "\nMali\nNiger"),
    ("custom:reverse_newline", {}, AFRICA, AFRICA.replace("Land 99\n", "")),
    ("custom:word_reverse", {}, "US the of symbol the is eagle bald The.", "The bald eagle."),
    ("custom:character_reverse", {}, "Elgae Dlab ehT", "The bald eagle"),
    ("custom:sentence_alphabet", {}, ALPHABET, ALPHABET.replace("Bne", "Cne")),
    (
        "custom:european_capitals_sort",
        {},
        ", ".join(ifbench_custom._CAPITALS).replace("Chisinau", "Chi\u0219in\u0103u"),
        ", ".join(reversed(ifbench_custom._CAPITALS)),
    ),
    ("custom:csv_city", {}, CITIES, CITIES + "\n8,A,B,2000,8"),
    ("custom:csv_city", {}, CITIES, CITIES.replace("6,A,B", "6,A")),
    ("custom:csv_special_character", {}, PRODUCTS, PRODUCTS.replace("a&b", "ab")),
    ("custom:csv_special_character", {}, PRODUCTS, PRODUCTS.replace('"a&b"', "a&b")),
    ("custom:csv_quotes", {}, GRADES, GRADES.replace('"5"', "5")),
    ("custom:csv_quotes", {}, GRADES, GRADES.replace("\t", ",")),
    ("custom:date_format_list", {}, "1796-04-12, 1805-12-02", "1796-04-12, 1805-13-02"),
    ("custom:date_format_list", {}, "1799-02-29", "1799-04-31"),
    ("custom:date_format_list", {}, "1769-08-00", "1768-08-15"),
]


@pytest.mark.parametrize(("check", "params", "good", "bad"), CASES)
def test_cases(check: str, params: dict[str, Any], good: str, bad: str) -> None:
    assert follows(f"ifbench/{check}", good, params)
    assert not follows(f"ifbench/{check}", bad, params)
