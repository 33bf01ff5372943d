"""GPQA: questions with four choices, of which the response names the letter (`choice/letter`)."""

from __future__ import annotations

import hashlib

from herl_megatron.data.sources.common import (
    Converted,
    Options,
    RejectedRow,
    SourceRow,
    optional_text,
    text_of,
)
from herl_megatron.types import Criterion, Message, Prompt, Rubric

_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_LETTERS = "ABCD"
_KEPT = {"Subdomain": "subdomain", "High-level domain": "domain"}
LETTER = "Reason step by step, and give the letter of the right choice in \\boxed{}."
"""Added to every question: it is where the check looks for the choice."""


def convert_gpqa(row: SourceRow, options: Options) -> Converted:
    """GPQA: Question, Correct Answer, Incorrect Answer 1 to 3, Record ID.

    The choices' order comes from the row's id alone; `extra.order` has the place of each, in the
    order of the letters (0 is the correct one). Domain and subdomain are kept, not what validators
    and writers said.
    """
    fields = row.fields
    question = text_of(fields, "Question").strip()
    choices = [text_of(fields, name).strip() for name in _CHOICES]
    if choices[0] in choices[1:]:
        raise RejectedRow("a wrong choice equals the right one", f"it is {choices[0]!r:.80}")
    notes = () if len(set(choices)) == len(choices) else ("two wrong choices are equal",)
    identity = optional_text(fields, "Record ID")
    identity = identity or hashlib.sha256(question.encode()).hexdigest()[:16]
    order = choice_order(identity)
    shown = "\n".join(
        f"{letter}) {choices[index]}" for letter, index in zip(_LETTERS, order, strict=True)
    )
    params = {"letter": _LETTERS[order.index(0)], "choices": len(choices)}
    kept = {key: optional_text(fields, name) for name, key in _KEPT.items()}
    prompt = Prompt(
        id=f"gpqa-{identity}",
        messages=(Message("user", f"{question}\n\n{shown}\n\n{LETTER}"),),
        rubric=Rubric(
            (Criterion("c1", "rule", "choice/letter", params),), options.aggregation or "explicit"
        ),
        source="gpqa",
        reference_answer=optional_text(fields, "Explanation"),
        extra={"order": order} | {key: value for key, value in kept.items() if value},
    )
    return Converted(prompt, notes)


def choice_order(identity: str) -> list[int]:
    """The order of a row's choices: by the hash of its id with the place of each."""
    hashes = [hashlib.sha256(f"{identity}/{place}".encode()).digest() for place in range(4)]
    return sorted(range(4), key=hashes.__getitem__)
