"""LLMEval-Med: Chinese medical questions with a reference answer and a checklist, graded 1 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from herl_megatron.data.sources.common import (
    Converted,
    Options,
    RejectedRow,
    SourceRow,
    messages_of,
    optional_text,
    prompt_key,
    rest_of,
    text_of,
)
from herl_megatron.types import Criterion, Message, Prompt, Rubric

# What the benchmark's own prompts for the categories without a checklist ask for.
WITHOUT_CHECKLIST = (
    "Agrees with the reference answer in everything that the question asks for, and is medically "
    "correct and safe."
)
_HISTORY = "earlier_turns"
_USED = ("problem", "sanswer", "checklist", _HISTORY)


def convert_llmeval_med(row: SourceRow, options: Options) -> Converted:
    """LLMEval-Med: problem, sanswer, checklist, category1, groupCode, round.

    One judge criterion, the whole checklist, with the question's category in `params`. Two of the
    five categories have none and are graded against the reference alone; some texts to write have a
    checklist and no reference. A later round of a conversation (see `add_earlier_turns`) has the
    earlier ones in front.
    """
    fields = row.fields
    turn = text_of(fields, "round") if fields.get("round") is not None else "1"
    earlier: Sequence[Message] = fields.get(_HISTORY, ())
    if turn != "1" and not earlier:
        raise RejectedRow("earlier rounds are missing", f"round {turn} of a conversation, alone")
    category = optional_text(fields, "category1")
    checklist, reference = optional_text(fields, "checklist"), optional_text(fields, "sanswer")
    if not checklist and not reference:
        raise RejectedRow("nothing to grade by", "neither a checklist nor a reference answer")
    notes = []
    if not checklist:
        notes.append("no checklist: graded against the reference alone")
    if not reference:
        notes.append("no reference answer: graded by the checklist alone")
    if earlier:
        notes.append("later round: reference answers stand for the model's earlier ones")
    criterion = Criterion(
        "checklist",
        "judge",
        params=({"category": category} if category else {})
        | ({} if checklist else {"no_checklist": True}),
        description=(checklist or WITHOUT_CHECKLIST).strip(),
    )
    messages = (*earlier, *messages_of(fields.get("problem"), "problem"))
    prompt = Prompt(
        # Not groupCode and round: each category counts its own groups.
        id=f"llmeval_med-{prompt_key(messages)[:16]}",
        messages=messages,
        rubric=Rubric((criterion,), options.aggregation or "llmeval_med"),
        source="llmeval_med",
        reference_answer=reference,
        extra=rest_of(fields, _USED),
    )
    return Converted(prompt, tuple(notes))


def add_earlier_turns(rows: Sequence[SourceRow]) -> list[SourceRow]:
    """Give later rounds of a conversation (one groupCode of a category) the rounds before them.

    The benchmark lets the model under test answer every round. A prompt of its own needs answers
    that are there beforehand, so the reference answers stand in for them.
    """
    turns: dict[tuple[str, str, str], tuple[Message, ...]] = {}
    found = []
    for row in rows:
        fields = row.fields
        problem, answer = optional_text(fields, "problem"), optional_text(fields, "sanswer")
        number = fields.get("round")
        conversation = (row.split, str(fields.get("category1")), str(fields.get("groupCode")))
        earlier = turns.get(conversation, ())
        if isinstance(number, int) and number > 1 and len(earlier) == 2 * (number - 1):
            row = replace(row, fields={**fields, _HISTORY: earlier})
        else:
            earlier = ()
        if problem and answer and isinstance(number, int) and len(earlier) == 2 * (number - 1):
            turns[conversation] = (
                *earlier,
                Message("user", problem),
                Message("assistant", answer),
            )
        found.append(row)
    return found
