"""The CPU quickstart's toy task: short texts about a topic under IFEval-style requirements.

It is shaped to show the mechanism, not a benchmark result: the warm start honours easy
requirements often and hard ones almost never, so plain sampling rarely meets the hard ones, while
revising a draft against named requirements is a skill the model is given.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from herl_megatron.data.toy_text import (
    END_PHRASES,
    TOPICS,
    Content,
    WishKind,
    compose,
    draw_content,
)
from herl_megatron.hindsight.revision_prompts import revision_messages
from herl_megatron.rubrics.checks.registry import run_check
from herl_megatron.types import Criterion, Message, Prompt, Rubric, Verdict

HARD: Mapping[WishKind, int] = {
    "capitals": 2,
    "quote": 4,
    "bullets": 1,
    "title": 4,
    "postscript": 1,
    "placeholder": 1,
    "highlight": 1,
}
"""Kinds that the warm start almost never honours, with their sampling weights."""
EASY: tuple[WishKind, ...] = (
    "forbid",
    "at_least",
    "less_than",
    "lowercase",
    "no_comma",
    "end_with",
)
"""Kinds that the warm start honours more often than not, equally likely."""
_HARD_COUNT_WEIGHTS = (0.30, 0.45, 0.25)
"""Chances of 0, 1 and 2 hard requirements in a prompt (always fewer than all of them)."""
_CONFLICTS: tuple[frozenset[WishKind], ...] = (
    frozenset({"capitals", "lowercase"}),
    frozenset({"at_least", "less_than"}),
    frozenset({"less_than", "bullets"}),
    frozenset({"less_than", "postscript"}),
    frozenset({"less_than", "title"}),
    frozenset({"less_than", "end_with"}),
    frozenset({"less_than", "placeholder"}),
    frozenset({"less_than", "highlight"}),
    frozenset({"bullets", "postscript"}),
    frozenset({"bullets", "quote"}),
    frozenset({"bullets", "at_least"}),
)
"""Pairs that one short answer cannot honour together."""


@dataclass(frozen=True)
class _Rule:
    """The check behind a kind of wish; `value_param` names the parameter that takes its value.

    The wording, `{}` standing for the value, is what prompts and revision prompts show.
    """

    check: str
    wording: str
    value_param: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)


_RULES: Mapping[WishKind, _Rule] = {
    "forbid": _Rule(
        "ifeval/keywords:forbidden_words", "Do not use the words: {}.", "forbidden_words"
    ),
    "at_least": _Rule(
        "ifeval/length_constraints:number_words",
        "Use at least {} words.",
        "num_words",
        {"relation": "at least"},
    ),
    "less_than": _Rule(
        "ifeval/length_constraints:number_words",
        "Use less than {} words.",
        "num_words",
        {"relation": "less than"},
    ),
    "lowercase": _Rule("text/all_lowercase", "Use only lowercase letters."),
    "no_comma": _Rule("ifeval/punctuation:no_comma", "Do not use commas."),
    "end_with": _Rule("ifeval/startend:end_checker", "End with the phrase: {}", "end_phrase"),
    "capitals": _Rule("text/all_uppercase", "Use only capital letters."),
    "quote": _Rule("ifeval/startend:quotation", "Wrap the response in double quotation marks."),
    "bullets": _Rule(
        "ifeval/detectable_format:number_bullet_lists",
        "Use exactly {} bullet points.",
        "num_bullets",
    ),
    "title": _Rule("ifeval/detectable_format:title", "Add a title in double angular brackets."),
    "postscript": _Rule(
        "ifeval/detectable_content:postscript",
        "Add a postscript starting with P.S.",
        params={"postscript_marker": "P.S."},
    ),
    "placeholder": _Rule(
        "ifeval/detectable_content:number_placeholders",
        "Include at least 1 placeholder in square brackets.",
        params={"num_placeholders": 1},
    ),
    "highlight": _Rule(
        "ifeval/detectable_format:number_highlighted_sections",
        "Highlight at least 1 section with stars.",
        params={"num_highlights": 1},
    ),
}


@dataclass(frozen=True)
class Wish:
    """One requirement of a toy prompt: its kind and the value it names, if any."""

    kind: WishKind
    value: Any = None


@dataclass(frozen=True)
class ToyPrompt:
    """A toy prompt before it becomes a canonical row."""

    topic: str
    wishes: tuple[Wish, ...]

    def to_prompt(self, prompt_id: str) -> Prompt:
        """The canonical prompt: criteria `c1`, `c2`, ... in the order of the text."""
        criteria = tuple(_criterion(f"c{i}", wish) for i, wish in enumerate(self.wishes, start=1))
        wanted = " ".join(criterion.description for criterion in criteria)
        message = Message("user", f"Write about the {self.topic}. {wanted}")
        return Prompt(id=prompt_id, messages=(message,), rubric=Rubric(criteria), source="toy")

    def answer(self, content: Content, honoured: Collection[WishKind]) -> str:
        """An answer that honours the wishes of these kinds and ignores the others."""
        kept = {wish.kind: wish.value for wish in self.wishes if wish.kind in honoured}
        return compose(self.topic, kept, content)


@dataclass(frozen=True)
class WarmStart:
    """How the supervised rows behave (chances between 0 and 1).

    easy, hard: an answer to a plain prompt honours a requirement of that class. fixed: a revision
    fixes an unmet requirement; what was met is always kept.
    """

    easy: float = 0.6
    hard: float = 0.002
    fixed: float = 0.95


def draw_prompt(rng: random.Random) -> ToyPrompt:
    """Two to four compatible requirements about one topic, at least one of them easy."""
    topic = rng.choice(sorted(TOPICS))
    while True:
        total = rng.choice((2, 3, 4))
        hard = min(total - 1, rng.choices((0, 1, 2), _HARD_COUNT_WEIGHTS)[0])
        drawn = rng.choices(list(HARD), list(HARD.values()), k=12)
        kinds = list(dict.fromkeys(drawn))[:hard] + rng.sample(EASY, total - hard)
        if not any(conflict <= set(kinds) for conflict in _CONFLICTS):
            break
    rng.shuffle(kinds)
    return ToyPrompt(topic, tuple(Wish(kind, _draw_value(rng, kind, topic)) for kind in kinds))


def draw_prompts(
    rng: random.Random, count: int, *, exclude: Collection[Prompt], prefix: str
) -> list[Prompt]:
    """`count` prompts whose texts differ from each other and from those in `exclude`."""
    seen = {prompt.messages[0].content for prompt in exclude}
    prompts: list[Prompt] = []
    while len(prompts) < count:
        prompt = draw_prompt(rng).to_prompt(f"{prefix}-{len(prompts):04d}")
        if prompt.messages[0].content not in seen:
            seen.add(prompt.messages[0].content)
            prompts.append(prompt)
    return prompts


def draw_sft_rows(
    rng: random.Random, *, exclude: Collection[Prompt], settings: WarmStart
) -> Iterator[tuple[Message, ...]]:
    """Endless supervised rows: a direct answer, a revision, and so on in turn.

    Prompts in `exclude` (the held-out ones) never occur.
    """
    held_out = {prompt.messages[0].content for prompt in exclude}
    while True:
        for draw_row in (_direct_row, _revision_row):
            toy = draw_prompt(rng)
            while toy.to_prompt("sft").messages[0].content in held_out:
                toy = draw_prompt(rng)
            yield draw_row(rng, toy, settings)


def _direct_row(rng: random.Random, toy: ToyPrompt, settings: WarmStart) -> tuple[Message, ...]:
    honoured = _draw_honoured(rng, toy, easy=settings.easy, hard=settings.hard)
    answer = toy.answer(draw_content(rng), honoured)
    return (*toy.to_prompt("sft").messages, Message("assistant", answer))


def _revision_row(rng: random.Random, toy: ToyPrompt, settings: WarmStart) -> tuple[Message, ...]:
    """A draft of mixed quality with at least one unmet requirement, and its revision."""
    prompt = toy.to_prompt("sft")
    met: set[str] = set()
    while True:
        content = draw_content(rng)
        easy, hard = rng.uniform(0.2, 0.9), rng.choice((0.05, 0.5))
        draft = toy.answer(content, _draw_honoured(rng, toy, easy=easy, hard=hard))
        met = satisfied_criteria(prompt, draft)
        if len(met) < len(toy.wishes):
            break
    criteria = prompt.rubric.criteria
    satisfied = [criterion for criterion in criteria if criterion.id in met]
    unmet = [criterion for criterion in criteria if criterion.id not in met]
    honoured = {
        wish.kind
        for wish, criterion in zip(toy.wishes, criteria, strict=True)
        if criterion.id in met or rng.random() < settings.fixed
    }
    messages = revision_messages(prompt, draft, satisfied, unmet, "criteria")
    return (*messages, Message("assistant", toy.answer(content, honoured)))


def satisfied_criteria(prompt: Prompt, response: str) -> set[str]:
    """Ids of the criteria that the response follows (the toy rubric has positive rules only)."""
    return {
        criterion.id
        for criterion in prompt.rubric.criteria
        if run_check(criterion, response).verdict is Verdict.FOLLOWED
    }


def _draw_honoured(
    rng: random.Random, toy: ToyPrompt, *, easy: float, hard: float
) -> set[WishKind]:
    return {
        wish.kind for wish in toy.wishes if rng.random() < (hard if wish.kind in HARD else easy)
    }


def _draw_value(rng: random.Random, kind: WishKind, topic: str) -> Any:
    match kind:
        case "forbid":
            return tuple(rng.sample(TOPICS[topic], 2))
        case "at_least":
            return rng.choice((16, 18, 20))
        case "less_than":
            return rng.choice((8, 9))
        case "end_with":
            return rng.choice(END_PHRASES)
        case "bullets":
            return rng.choice((2, 3))
        case _:
            return None


def _criterion(criterion_id: str, wish: Wish) -> Criterion:
    rule = _RULES[wish.kind]
    words = isinstance(wish.value, tuple)
    params = dict(rule.params)
    if rule.value_param:
        params[rule.value_param] = list(wish.value) if words else wish.value
    return Criterion(
        id=criterion_id,
        kind="rule",
        check=rule.check,
        params=params,
        description=rule.wording.format(", ".join(wish.value) if words else wish.value),
    )
