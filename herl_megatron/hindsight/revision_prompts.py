"""The revision prompt (E_i): instruction, draft, criteria to keep, criteria to fix, request; or the
instruction with the criteria, where a model copies its draft rather than revise it (`guided`); or a
user's own template (`prompt_file`).

Everything that a revision prompt shares with the plain prompt x comes first: the request extends
the last user message, so the engine's prefix cache serves the instruction. The wording is short and
fixed; nothing is ever cut here (what is too long is counted and skipped by `experience`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

from herl_megatron.rubrics.aggregations import weight_of
from herl_megatron.rubrics.rubric import describe, judge_format
from herl_megatron.types import Aggregation, Criterion, Message, Prompt

PromptStyle = Literal["criteria", "rubric", "naive", "guided", "guided_missed"]


@dataclass(frozen=True)
class RevisionTemplate:
    """The text of a user's own revision prompt (`prompt_file`), and the placeholders in it."""

    text: str
    placeholders: frozenset[str]

    @property
    def tells_verdicts(self) -> bool:
        """Whether it lists criteria."""
        return bool(self.placeholders & {"met", "unmet"})


RevisionForm = PromptStyle | RevisionTemplate
"""How a revision is asked for: `hindsight.prompt_style`, or `hindsight.prompt_file` as read."""

DRAFT_HEADING = "Draft:"
KEEP_HEADING = "Requirements met, to keep:"
FIX_HEADING = "Requirements missed, to fix:"
REQUEST = "Write only the revised answer."
NAIVE_REQUEST = "Improve the draft. Write only the revised answer."
GUIDE_HEADING = "Follow these requirements:"
_WITHOUT_DRAFT: tuple[PromptStyle, ...] = ("guided", "guided_missed")


def revision_messages(
    prompt: Prompt,
    draft: str,
    satisfied: Sequence[Criterion],
    unmet: Sequence[Criterion],
    style: RevisionForm,
) -> tuple[Message, ...]:
    """Messages that ask for a revision of `draft`; the last user message of x is extended.

    `criteria` lists what to keep and what to fix, `rubric` adds each criterion's weight, `naive`
    shows the draft without any verdict. `guided` shows no draft: the rubric's criteria become
    instructions of x, in `guided_missed` the missed ones alone. An empty list leaves its block out.
    A template takes the place of the whole message.

    Raises ValueError if the prompt does not end with a user message, the style is unknown, or it
    lists criteria whose verdicts nobody knows: one grade for the whole rubric (`implicit`,
    `llmeval_med`) does not say which of them fails. `unmet` must not be empty: a response that
    misses nothing is no experience.
    """
    assert unmet, f"prompt {prompt.id!r}: no unmet criterion, so nothing to revise"
    if not prompt.messages or prompt.messages[-1].role != "user":
        role = prompt.messages[-1].role if prompt.messages else "no message"
        raise ValueError(
            f"prompt {prompt.id!r} ends with {role!r}; a revision extends the last user message: "
            "end the prompt with a user message"
        )
    aggregation = prompt.rubric.aggregation
    if _tells_verdicts(style) and judge_format(prompt.rubric).one_grade:
        key = "prompt_file" if isinstance(style, RevisionTemplate) else f"prompt_style {style!r}"
        raise ValueError(
            f"prompt {prompt.id!r}: aggregation {aggregation!r} gives one grade for the whole "
            f"rubric, so hindsight.{key} cannot say what to fix; use "
            "prompt_style: naive, another aggregation, or hindsight.enabled: false"
        )
    instruction = prompt.messages[-1].content
    if isinstance(style, RevisionTemplate):
        content = style.text.format(
            instruction=instruction, draft=draft, met=_list(satisfied), unmet=_list(unmet)
        )
        return (*prompt.messages[:-1], Message("user", content))
    told = prompt.rubric.criteria if style == "guided" else unmet
    request = _request(satisfied, told, style, aggregation)
    shown = [] if style in _WITHOUT_DRAFT else [f"{DRAFT_HEADING}\n{draft}"]
    blocks = [instruction, *shown, *request]
    return (*prompt.messages[:-1], Message("user", "\n\n".join(blocks)))


def _tells_verdicts(style: RevisionForm) -> bool:
    return style.tells_verdicts if isinstance(style, RevisionTemplate) else style != "naive"


def _list(criteria: Sequence[Criterion]) -> str:
    """For a template, whose words around it stay where the list is empty."""
    return "\n".join(f"- {_line(criterion, None)}" for criterion in criteria) or "none"


def check_prompts(prompts: Sequence[Prompt], style: RevisionForm) -> None:
    """Raise ValueError, naming the prompt, for one that no revision can be asked for."""
    for prompt in prompts:
        criteria = prompt.rubric.criteria
        revision_messages(prompt, "", criteria, criteria, style)


def plain_text(messages: Sequence[Message]) -> str:
    """The contents alone, without roles: what people read, and E_i without a chat template."""
    return "\n\n".join(message.content for message in messages)


def _request(
    satisfied: Sequence[Criterion],
    unmet: Sequence[Criterion],
    style: PromptStyle,
    aggregation: Aggregation,
) -> list[str]:
    match style:
        case "naive":
            return [NAIVE_REQUEST]
        case "criteria" | "rubric":
            weigher = aggregation if style == "rubric" else None
            keep = [_block(KEEP_HEADING, satisfied, weigher)] if satisfied else []
            return [*keep, _block(FIX_HEADING, unmet, weigher), REQUEST]
        case "guided" | "guided_missed":
            return [_block(GUIDE_HEADING, unmet, None)]
        case _:
            _refuse_style(style)


def _block(heading: str, criteria: Sequence[Criterion], weigher: Aggregation | None) -> str:
    return "\n".join([heading, *(f"- {_line(criterion, weigher)}" for criterion in criteria)])


def _line(criterion: Criterion, weigher: Aggregation | None) -> str:
    """One list entry. A negative criterion describes what must not be true of the answer."""
    text = describe(criterion)
    if criterion.polarity == "negative":
        text = f"avoid: {text}"
    return text if weigher is None else f"{text} (weight {weight_of(weigher, criterion):g})"


def _refuse_style(style: object) -> NoReturn:
    raise ValueError(f"unknown prompt style {style!r}: use {', '.join(get_args(PromptStyle))}")
