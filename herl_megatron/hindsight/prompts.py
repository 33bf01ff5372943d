"""The revision prompt: instruction, draft, criteria to keep, criteria to fix, request (E_i).

Everything that a revision prompt shares with the plain prompt x comes first: the request extends
the last user message, so the engine's prefix cache serves the instruction. The wording is short and
fixed; nothing is ever cut here (what is too long is counted and skipped by `experience`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn

from herl_megatron.rubrics.rubric import describe
from herl_megatron.types import Criterion, Message, Prompt

PromptStyle = Literal["criteria", "rubric", "naive"]

DRAFT_HEADING = "Draft:"
KEEP_HEADING = "Requirements met, to keep:"
FIX_HEADING = "Requirements missed, to fix:"
REQUEST = "Write only the revised answer."
NAIVE_REQUEST = "Improve the draft. Write only the revised answer."


def revision_messages(
    prompt: Prompt,
    draft: str,
    satisfied: Sequence[Criterion],
    unmet: Sequence[Criterion],
    style: PromptStyle,
) -> tuple[Message, ...]:
    """Messages that ask for a revision of `draft`; the last user message of x is extended.

    `criteria` lists what to keep and what to fix, `rubric` adds each criterion's weight, `naive`
    shows the draft without any verdict. An empty list leaves its block out.

    Raises ValueError if the prompt does not end with a user message or the style is unknown.
    `unmet` must not be empty: a response that misses nothing is no experience.
    """
    assert unmet, f"prompt {prompt.id!r}: no unmet criterion, so nothing to revise"
    if not prompt.messages or prompt.messages[-1].role != "user":
        role = prompt.messages[-1].role if prompt.messages else "no message"
        raise ValueError(
            f"prompt {prompt.id!r} ends with {role!r}; a revision extends the last user message: "
            "end the prompt with a user message"
        )
    instruction = prompt.messages[-1].content
    blocks = [instruction, f"{DRAFT_HEADING}\n{draft}", *_request(satisfied, unmet, style)]
    return (*prompt.messages[:-1], Message("user", "\n\n".join(blocks)))


def plain_text(messages: Sequence[Message]) -> str:
    """The contents alone, without roles: what people read, and E_i without a chat template."""
    return "\n\n".join(message.content for message in messages)


def _request(
    satisfied: Sequence[Criterion], unmet: Sequence[Criterion], style: PromptStyle
) -> list[str]:
    match style:
        case "naive":
            return [NAIVE_REQUEST]
        case "criteria" | "rubric":
            weights = style == "rubric"
            keep = [_block(KEEP_HEADING, satisfied, weights)] if satisfied else []
            return [*keep, _block(FIX_HEADING, unmet, weights), REQUEST]
        case _:
            _refuse_style(style)


def _block(heading: str, criteria: Sequence[Criterion], weights: bool) -> str:
    return "\n".join([heading, *(f"- {_line(criterion, weights)}" for criterion in criteria)])


def _line(criterion: Criterion, weights: bool) -> str:
    """One list entry. A negative criterion describes what must not be true of the answer."""
    text = describe(criterion)
    if criterion.polarity == "negative":
        text = f"avoid: {text}"
    return f"{text} (weight {criterion.weight:g})" if weights else text


def _refuse_style(style: object) -> NoReturn:
    raise ValueError(f"unknown prompt style {style!r}: use 'criteria', 'rubric' or 'naive'")
