r"""Checks of a final answer: equal as mathematics, or the letter of a choice.

What counts is the last `\boxed{...}` of the response; what it says elsewhere is working. The
answer that is right stands in the parameters and never in a description, which writers see.
"""

from __future__ import annotations

import re
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
_AT_ITS_BEGIN = re.compile(
    r"\W*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\W*(?P<letter>[A-J])(?![A-Za-z0-9'])"
)
_SAID = re.compile(
    r"\b(?i:answer|choice|option)(?i:\s+is|\s*:)[\s*_:($\\{\[\"']*"
    r"(?:text\w*\s*\{\s*)?\(?(?P<letter>[A-J])(?![A-Za-z0-9'])"
)


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
    announces, else the last formula or number.
    """
    right = _read(answer)
    if not right:
        raise ValueError(f"the answer {answer!r:.80} cannot be read as mathematics")
    boxed = last_boxed(response)
    given = _read(boxed) if boxed is not None else _parse(_end_of(response))
    from math_verify import verify

    # The second reading of each is its text: equal words are equal.
    return bool(given) and bool(verify(list(right), list(given), timeout_seconds=None))


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
    """The choice is `letter`: what the last box begins with; without a box the last letter that is
    announced ("the answer is (B)", "Answer: B"), or a last line that is a letter alone."""
    allowed = "ABCDEFGHIJ"[:choices]
    boxed = last_boxed(response)
    if boxed is not None:
        found = _AT_ITS_BEGIN.match(boxed)
        return found is not None and found["letter"] == letter
    return next((c for c in _announced(response) if c in allowed), "") == letter


def _announced(response: str) -> Iterator[str]:
    """Letters that may be the choice, the likeliest first."""
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    alone = re.fullmatch(r"[\W_]*([A-J])[\W_]*", lines[-1]) if lines else None
    if alone:
        yield alone[1]
    yield from (found["letter"] for found in reversed(list(_SAID.finditer(response))))
