"""Two tasks for a small instruction-tuned model: short answers about topics, checked by rules.

`stated`: the prompt states every criterion of its rubric, as IFEval's prompts do. `unstated`: the
rubric is a house style that the prompt does not mention, as rubrics in RaR and HealthBench ask for
what the question leaves open; only the kind of text that is asked for tells which style holds.
Topics are held out: none of the evaluation's occurs in training.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from herl_megatron.types import Criterion, Message, Prompt, Rubric

Task = Literal["stated", "unstated"]

TOPICS = (
    "apples", "autumn leaves", "baking bread", "beehives", "bicycles", "birdsong", "books",
    "bridges", "butterflies", "camping", "candles", "castles", "chess", "city parks", "clouds",
    "coffee", "compasses", "coral reefs", "deserts", "dolphins", "elephants", "fishing", "forests",
    "gardens", "glaciers", "guitars", "harbors", "hiking", "honey", "horses", "islands", "kites",
    "lanterns", "lighthouses", "maps", "markets", "moonlight", "mountains", "museums", "music",
    "ocean waves", "old trains", "orchards", "owls", "painting", "penguins", "photography",
    "pottery", "rainbows", "rivers", "sailing", "seashells", "snow", "sunflowers", "swimming",
    "tea", "telescopes", "thunderstorms", "tigers", "tree houses", "violins", "waterfalls",
    "whales", "windmills",
)  # fmt: skip
"""What the texts are about; each fits after "about"."""
_REQUESTS = (
    "Write two sentences about {topic}.",
    "Say something short about {topic}.",
    "Describe {topic} in two sentences.",
    "Tell a child about {topic} in two sentences.",
)


@dataclass(frozen=True)
class Instruction:
    """A criterion and the sentences that state it in a prompt, the first one wherever it has to be
    described (revision prompts); `{word}` stands for the topic's last word."""

    check: str
    sentences: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)

    def criterion(self, number: int, word: str) -> Criterion:
        """As the rubric's criterion `cNUMBER`."""
        params = {
            name: [part.format(word=word) for part in value] if isinstance(value, list) else value
            for name, value in self.params.items()
        }
        return Criterion(
            id=f"c{number}",
            kind="rule",
            check=f"ifeval/{self.check}",
            params=params,
            description=self.sentences[0].format(word=word),
        )


INSTRUCTIONS: Mapping[str, Instruction] = {
    "no_comma": Instruction(
        "punctuation:no_comma",
        ("Do not use any commas.", "Refrain from using commas."),
    ),
    "lowercase": Instruction(
        "change_case:english_lowercase",
        ("Use only lowercase letters.", "Write everything in lowercase, without capital letters."),
    ),
    "quotation": Instruction(
        "startend:quotation",
        ("Wrap your entire response in double quotation marks.",),
    ),
    "title": Instruction(
        "detectable_format:title",
        ("Include a title wrapped in double angular brackets, such as <<title>>.",),
    ),
    "end_phrase": Instruction(
        "startend:end_checker",
        ("End your response with the exact phrase: Thank you for reading.",),
        {"end_phrase": "Thank you for reading."},
    ),
    "postscript": Instruction(
        "detectable_content:postscript",
        ("At the end, add a postscript starting with P.S.",),
        {"postscript_marker": "P.S."},
    ),
    "placeholder": Instruction(
        "detectable_content:number_placeholders",
        ("Include at least one placeholder in square brackets, such as [name].",),
        {"num_placeholders": 1},
    ),
    "highlight": Instruction(
        "detectable_format:number_highlighted_sections",
        ("Highlight at least one phrase with asterisks, such as *phrase*.",),
        {"num_highlights": 1},
    ),
    "bullets": Instruction(
        "detectable_format:number_bullet_lists",
        ("Answer with exactly two bullet points, each starting with an asterisk.",),
        {"num_bullets": 2},
    ),
    "keyword": Instruction(
        "keywords:existence",
        ("Include the words {word} and together.",),
        {"keywords": ["{word}", "together"]},
    ),
}
"""The instruction types of the stated task."""
_CONFLICTS = (
    frozenset({"end_phrase", "quotation"}),
    frozenset({"end_phrase", "postscript"}),
    frozenset({"bullets", "quotation"}),
    frozenset({"bullets", "postscript"}),
    frozenset({"bullets", "end_phrase"}),
    frozenset({"bullets", "title"}),
    frozenset({"bullets", "highlight"}),
    frozenset({"lowercase", "postscript"}),
    frozenset({"lowercase", "end_phrase"}),
)
"""Pairs that a short answer hardly meets together, or of which one spoils the other."""


@dataclass(frozen=True)
class HouseStyle:
    """The requests for one kind of text, and what every text of that kind has to be."""

    requests: tuple[str, ...]
    instructions: tuple[str, ...]


HOUSE_STYLES: Mapping[str, HouseStyle] = {
    "note": HouseStyle(_REQUESTS, ("no_comma", "title", "postscript")),
    "card": HouseStyle(
        ("Write a greeting card about {topic}.", "Make a short card about {topic}."),
        ("quotation", "no_comma", "placeholder"),
    ),
    "list": HouseStyle(
        ("List two facts about {topic}.", "Name two things about {topic}."),
        ("bullets", "no_comma", "keyword"),
    ),
}
"""Rubrics of the unstated task, by the kind of text that is asked for."""


@dataclass(frozen=True)
class Rows:
    """A task's prompts; no topic occurs in both."""

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]


def draw_rows(
    task: Task,
    *,
    seed: int,
    train: int,
    heldout: int,
    heldout_topics: int = 16,
    styles: Sequence[str] = ("note",),
) -> Rows:
    """`train` and `heldout` different prompts; the same arguments give the same ones.

    heldout_topics: of TOPICS, drawn for the evaluation. styles: of HOUSE_STYLES, for `unstated`.

    Raises:
        ValueError: a number that leaves nothing or asks for more than there is, an unknown style.
    """
    if unknown := [name for name in styles if name not in HOUSE_STYLES]:
        raise ValueError(f"style {unknown[0]!r} is unknown: use {', '.join(HOUSE_STYLES)}")
    if not 0 < heldout_topics < len(TOPICS):
        raise ValueError(
            f"{heldout_topics} held-out topics of {len(TOPICS)} leave none for training or none for"
            f" the evaluation: give 1 to {len(TOPICS) - 1}"
        )
    topics = list(TOPICS)
    random.Random(f"short/{seed}/topics").shuffle(topics)
    parts = {
        "heldout": (topics[:heldout_topics], heldout),
        "train": (topics[heldout_topics:], train),
    }
    drawn = {
        part: _draw(task, part, own, count=count, seed=seed, styles=styles)
        for part, (own, count) in parts.items()
    }
    return Rows(**drawn)


def _draw(
    task: Task, part: str, topics: Sequence[str], *, count: int, seed: int, styles: Sequence[str]
) -> tuple[Prompt, ...]:
    rng = random.Random(f"short/{seed}/{task}/{part}")
    every = list(_stated(topics, rng) if task == "stated" else _unstated(topics, styles))
    if not 0 < count <= len(every):
        raise ValueError(
            f"{count} {part} prompts were asked for; {len(topics)} topics give 1 to {len(every)}"
        )
    chosen = _spread(every, rng, count)
    return tuple(
        Prompt(
            id=f"{task}-{part}-{number:04d}",
            messages=(Message("user", text),),
            rubric=Rubric(criteria),
            source=f"short/{task}",
            extra={"topic": topic},
        )
        for number, (topic, text, criteria) in enumerate(chosen)
    )


_Drawn = tuple[str, str, tuple[Criterion, ...]]
"""Topic, the user's message, the rubric."""


def _spread(every: Sequence[_Drawn], rng: random.Random, count: int) -> list[_Drawn]:
    """`count` of them in random order, each topic as often as the next one, give or take one."""
    shuffled = rng.sample(every, len(every))
    turns: dict[str, int] = {}
    ranked = []
    for item in shuffled:
        turns[item[0]] = turns.get(item[0], 0) + 1
        ranked.append((turns[item[0]], item))
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])[:count]]


def _stated(topics: Sequence[str], rng: random.Random) -> Iterator[_Drawn]:
    """Every topic, request and compatible pair of instructions, in words drawn with `rng`."""
    pairs = [
        pair
        for pair in itertools.combinations(INSTRUCTIONS, 2)
        if not any(conflict <= set(pair) for conflict in _CONFLICTS)
    ]
    for topic, request, pair in itertools.product(topics, _REQUESTS, pairs):
        order = rng.sample(pair, 2)
        word = topic.split()[-1]
        told = [rng.choice(INSTRUCTIONS[name].sentences).format(word=word) for name in order]
        yield topic, " ".join([request.format(topic=topic), *told]), _rubric(order, word)


def _unstated(topics: Sequence[str], styles: Sequence[str]) -> Iterator[_Drawn]:
    for topic, name in itertools.product(topics, styles):
        style = HOUSE_STYLES[name]
        for request in style.requests:
            criteria = _rubric(style.instructions, topic.split()[-1])
            yield topic, request.format(topic=topic), criteria


def _rubric(names: Sequence[str], word: str) -> tuple[Criterion, ...]:
    return tuple(
        INSTRUCTIONS[name].criterion(number, word) for number, name in enumerate(names, start=1)
    )
