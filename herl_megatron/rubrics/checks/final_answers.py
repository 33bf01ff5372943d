r"""Checks of a final answer: equal as mathematics, or the letter of a choice.

What counts is the last `\boxed{...}` of the response; what it says elsewhere is working. The
answer that is right stands in the parameters and never in a description, which writers see.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from herl_megatron.rubrics.checks.check_parameters import Stripped
from herl_megatron.rubrics.checks.registry import register

Letter = Literal["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"]
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_LONGEST = 2000
"""Characters of an answer; a longer one is no final answer, and is not read as a formula."""
_NAMED = r"(?i:(?:choice|option|answer)\s*:?\s+)?"
_AT_ITS_BEGIN = re.compile(
    r"\W*(?:(?:text|textbf|textrm|mathrm|mathbf|rm|bf)\b\W*)?"
    + _NAMED
    + r"\W*(?P<letter>[A-J])(?![A-Za-z0-9'])"
)
_ANOTHER = re.compile(r"\W*?(?:[,/;&+|]|\b(?:or|and)\b)\W*[A-J](?![A-Za-z0-9'])")
"""Behind a letter: "B or C" chooses nothing."""
_SAID = re.compile(
    r"\b(?i:answer|choice|option)(?i:\s+is|\s*:)[\s*_:($\\{\[\"']*"
    rf"(?:text\w*\s*\{{\s*)?{_NAMED}\(?(?P<letter>[A-J])(?![A-Za-z0-9'])"
)
_IN_BASE = re.compile(r"(?:[0-9A-Z]+)_\{?(\d+)\}?")
_BRACKETS = re.compile(r"[{}()\[\]]|\\left|\\right")
_HAT = re.compile(r"\s*\^\s*")
_POWERS = re.compile(r"\d+(?:\^\d+)+")
_MOST_DIGITS = 10_000


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` (or `\fbox`) whose braces close; None without one."""
    for box in reversed(list(_BOX.finditer(text))):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                return text[box.end() : brace.start()]
    return None


@register(
    "math/answer",
    description="Give the right final answer, in \\boxed{{}}.",
    requires=("math_verify",),
)
def math_answer(response: str, *, answer: Stripped) -> bool:
    """The final answer equals `answer` as mathematics, by the package math-verify: numbers, terms,
    tuples, sets, intervals, units left out.

    It is what the last box holds; without one, what the package takes for it: what an "answer is"
    announces, else the last formula or number. A number in another base is another number, one
    without a base is taken for one in the base that is asked for. A power that nobody could write
    out is no final answer.
    """
    right = _read(answer)
    if not right:
        raise ValueError(f"the answer {answer!r:.80} cannot be read as mathematics")
    boxed = last_boxed(response)
    said = unicodedata.normalize("NFKC", _end_of(response) if boxed is None else boxed)
    if _in_another_base(said, answer) or _is_endless(said):
        return False
    given = _parse(said) if boxed is None else _read(said)
    from math_verify import verify

    # The second reading of each is its text: equal words are equal.
    return bool(given) and bool(verify(list(right), list(given), timeout_seconds=None))


def _in_another_base(given: str, right: str) -> bool:
    """Whether both name the base of a number, as in `4210_5`, and not the same one; the package
    compares the digits alone."""
    asked = _IN_BASE.fullmatch(_shortest(right))
    found = _IN_BASE.fullmatch(_shortest(given))
    return bool(asked and found and asked[1] != found[1])


def _shortest(formula: str) -> str:
    return formula.replace(" ", "").replace("\\text", "").strip("$")


def _is_endless(formula: str) -> bool:
    """Whether it has a power of plain numbers with too many digits to be worked out, as a tower of
    tens: the package would work on it for ever."""
    for powers in _POWERS.finditer(_HAT.sub("^", _BRACKETS.sub("", formula))):
        *bases, exponent = powers[0].split("^")
        value = int(exponent[:20])
        for base in reversed(bases):
            if value * len(base) > _MOST_DIGITS:
                return True
            value = int(base) ** value
    return False


@lru_cache(maxsize=4096)
def _read(formula: str) -> tuple[Any, ...]:
    """The readings of a bare formula: as mathematics, and as text; none of an empty one."""
    if not formula.strip() or len(formula) > _LONGEST:
        return ()
    return _parse(f"\\boxed{{{formula}}}")


def _parse(text: str) -> tuple[Any, ...]:
    from math_verify import parse

    # Its own time limit would take the alarm that ours stands on (`time_limit`).
    return tuple(parse(text, parsing_timeout=None))


def _end_of(response: str) -> str:
    """The last characters: an answer without a box is announced there, and reading all is slow."""
    return response[-_LONGEST:]


def _wrong_letter(*, letter: Letter, choices: int) -> str:
    if not 2 <= choices <= 10:
        return f"{choices} choices; there are 2 to 10, A to J"
    if letter > "ABCDEFGHIJ"[choices - 1]:
        return f"no response can choose {letter} of {choices}"
    return ""


@register(
    "choice/letter",
    description="Choose the right answer and give its letter, in \\boxed{{}}.",
    pointless=_wrong_letter,
)
def choice_letter(response: str, *, letter: Letter, choices: int = 4) -> bool:
    """The choice is `letter`: what the last box begins with, unless another letter follows ("B or
    C"); without a box the last letter that is announced ("the answer is (B)", "Answer: B"), or a
    last line that is a letter alone."""
    allowed = "ABCDEFGHIJ"[:choices]
    boxed = last_boxed(response)
    if boxed is not None:
        found = _AT_ITS_BEGIN.match(boxed)
        one = found is not None and not _ANOTHER.match(boxed, found.end())
        return one and found is not None and found["letter"] == letter
    return next((c for c in _announced(response) if c in allowed), "") == letter


def _announced(response: str) -> Iterator[str]:
    """Letters that may be the choice, the likeliest first."""
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    alone = re.fullmatch(r"[\W_]*([A-J])[\W_]*", lines[-1]) if lines else None
    if alone:
        yield alone[1]
    for found in reversed(list(_SAID.finditer(response))):
        if not _ANOTHER.match(response, found.end()):
            yield found["letter"]
