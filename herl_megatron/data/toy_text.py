"""Sentences of the toy task: a tiny world to write about, and answers that honour given wishes.

A wish is one requirement of a prompt by its kind (`WISH_KINDS`) and value. `compose` writes an
answer that honours the wishes it is given and follows neutral habits in everything else, so the
same `Content` gives a draft and, with more wishes honoured, its revision.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

WishKind = Literal[
    "forbid",
    "at_least",
    "less_than",
    "lowercase",
    "no_comma",
    "end_with",
    "capitals",
    "quote",
    "bullets",
    "title",
    "postscript",
    "placeholder",
    "highlight",
]

TOPICS: Mapping[str, tuple[str, ...]] = {
    "river": ("stone", "moss", "bridge", "trout", "reed"),
    "garden": ("rose", "fence", "spade", "herb", "hedge"),
    "city": ("tower", "tram", "square", "clock", "alley"),
    "forest": ("oak", "fern", "owl", "trail", "cabin"),
    "kitchen": ("kettle", "oven", "spoon", "bread", "apron"),
    "harbor": ("anchor", "gull", "pier", "sail", "crate"),
    "desert": ("dune", "camel", "cactus", "tent", "well"),
    "school": ("desk", "chalk", "bell", "book", "map"),
    "farm": ("barn", "plow", "goat", "corn", "wagon"),
    "mountain": ("peak", "snow", "cliff", "goatherd", "lodge"),
    "market": ("stall", "basket", "coin", "fruit", "scale"),
    "train": ("rail", "whistle", "ticket", "coach", "tunnel"),
    "castle": ("gate", "moat", "banner", "knight", "hall"),
    "island": ("palm", "shell", "reef", "canoe", "lagoon"),
    "museum": ("vase", "statue", "guide", "mural", "relic"),
    "winter": ("scarf", "ice", "sled", "frost", "hearth"),
}
END_PHRASES = ("That is all.", "Thank you for reading.")
_ADJECTIVES = ("old", "calm", "small", "bright", "quiet", "wide", "warm", "grey")
_VERBS = ("rests", "waits", "stands", "shines", "sleeps", "glows")
_OUR_VERBS = ("love", "draw", "visit", "watch", "paint", "miss")
_TIMES = ("morning", "evening", "spring", "autumn")
_MAX_SENTENCES = 4


@dataclass(frozen=True)
class Content:
    """What an answer says apart from the wishes: the writer's neutral habits.

    seeds: one per possible sentence, `[4]`. sentences: how many are written without a wish about
    length. comma: whether each sentence takes the frame with a comma, `[4]`. lowercase: whether
    everything is written in lower case although nobody asked.
    """

    seeds: tuple[int, ...]
    sentences: int
    comma: tuple[bool, ...]
    lowercase: bool


def draw_content(rng: random.Random) -> Content:
    """Habits: mostly two sentences, 35 % comma frames, 10 % lower case."""
    return Content(
        seeds=tuple(rng.randrange(10**6) for _ in range(_MAX_SENTENCES)),
        sentences=rng.choice((2, 2, 2, 1)),
        comma=tuple(rng.random() < 0.35 for _ in range(_MAX_SENTENCES)),
        lowercase=rng.random() < 0.1,
    )


def compose(topic: str, wishes: Mapping[WishKind, Any], content: Content) -> str:
    """An answer about `topic` that honours every wish in `wishes`."""
    bullets = "bullets" in wishes
    gap = "\n" if bullets else " "
    sentences = _sentences(topic, wishes, content)
    parts = [f"* {sentence}." if bullets else f"{sentence}." for sentence in sentences]
    if "placeholder" in wishes:
        parts.append("Write to [name].")
    if "highlight" in wishes:
        parts.append(f"Enjoy the *{topic}*.")
    text = gap.join(parts)
    if "title" in wishes:
        text = f"<<The {_pick(_ADJECTIVES, content.seeds[1])} {topic}>>\n{text}"
    end = wishes.get("end_with", "")
    if "postscript" in wishes:
        text += f"\nP.S. {end or f'We {_pick(_OUR_VERBS, content.seeds[2])} the {topic}.'}"
    elif end:
        text += gap + end
    if "quote" in wishes:
        text = f'"{text}"'
    if "capitals" in wishes:
        return text.upper()
    return text.lower() if "lowercase" in wishes or content.lowercase else text


def _sentences(topic: str, wishes: Mapping[WishKind, Any], content: Content) -> list[str]:
    """As many sentences as the wishes about length, bullets, commas and words allow."""
    nouns = [noun for noun in TOPICS[topic] if noun not in wishes.get("forbid", ())]
    sentences = [
        _sentence(topic, nouns, seed=seed, comma=comma and "no_comma" not in wishes)
        for seed, comma in zip(content.seeds, content.comma, strict=True)
    ]
    if "bullets" in wishes:
        return sentences[: wishes["bullets"]]
    if "less_than" in wishes:
        if _words(sentences[:1]) < wishes["less_than"]:
            return sentences[:1]
        rng = random.Random(content.seeds[0])
        return [f"The {rng.choice(nouns)} {rng.choice(_VERBS)} by the {topic}"]
    count = content.sentences
    while count < _MAX_SENTENCES and _words(sentences[:count]) < wishes.get("at_least", 0):
        count += 1
    return sentences[:count]


def _sentence(topic: str, nouns: Sequence[str], *, seed: int, comma: bool) -> str:
    """One sentence of 6 to 8 words without its full stop."""
    rng = random.Random(seed)
    first, second = rng.choice(nouns), rng.choice(nouns)
    if comma:
        return f"In the {rng.choice(_TIMES)}, the {first} {rng.choice(_VERBS)}"
    match rng.randrange(3):
        case 0:
            return f"The {rng.choice(_ADJECTIVES)} {first} {rng.choice(_VERBS)} near the {second}"
        case 1:
            verb, adjective = rng.choice(_OUR_VERBS), rng.choice(_ADJECTIVES)
            return f"We {verb} the {adjective} {first} and the {second}"
        case _:
            return f"The {first} {rng.choice(_VERBS)} by the {rng.choice(_ADJECTIVES)} {topic}"


def _words(sentences: Sequence[str]) -> int:
    return len(re.findall(r"\w+", " ".join(sentences)))


def _pick(words: Sequence[str], seed: int) -> str:
    return words[seed % len(words)]
