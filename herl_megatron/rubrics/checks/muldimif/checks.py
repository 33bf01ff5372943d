"""Registration of MulDimIF's rules under the labels of the data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from herl_megatron.rubrics.checks.muldimif.keywords import read_keywords
from herl_megatron.rubrics.checks.muldimif.language import read_chinese, read_english
from herl_megatron.rubrics.checks.muldimif.lengths import (
    read_paragraphs,
    read_sentences,
    read_words,
)
from herl_megatron.rubrics.checks.muldimif.markdown import read_markdown
from herl_megatron.rubrics.checks.muldimif.others import read_json, read_others
from herl_megatron.rubrics.checks.muldimif.punctuation import read_punctuation
from herl_megatron.rubrics.checks.muldimif.reading import Rule
from herl_megatron.rubrics.checks.muldimif.tables import read_table
from herl_megatron.rubrics.checks.registry import register

# Readers by the labels (level 1, level 2) that the data set gives to their constraints.
_READERS: dict[Callable[[str], Rule], dict[str, tuple[str, ...]]] = {
    read_keywords: {"Content": ("Keywords", "Keywords: Must include")},
    read_punctuation: {
        "Content": ("Punctuation", "Punctuation: Ending punctuation"),
        "Punctuation": ("Ending punctuation",),
    },
    read_words: {
        "Length": ("Words", "Words: At most", "Words: At least", "Words: Range"),
        "Words": ("At most",),
        "Format": ("Word Count",),
    },
    read_sentences: {
        "Length": ("Sentences", "Sentences: At least", "Sentences: At most", "Sentences: Range"),
        "Sentences": ("At most", "At least"),
    },
    read_paragraphs: {
        "Length": (
            "Paragraphs",
            "Paragraphs: At most",
            "Paragraphs: At least",
            "Paragraphs: Range",
        ),
        "Paragraphs": ("At most",),
    },
    read_table: {
        "Format": ("Table", "Table: Row limit", "Table: Column limit"),
        "Table": ("Row limit", "Column limit"),
    },
    read_english: {"Language": ("English", "English: Capitalized", "English: All Uppercase")},
    read_chinese: {"Language": ("Chinese", "Chinese: Simplified", "Chinese: Traditional")},
    read_markdown: {
        "Format": ("Markdown", "Markdown: Heading levels"),
        "Markdown": ("Heading levels", "Block quotes"),
    },
    read_json: {"Json": ("Object nesting levels", "Number of attributes"), "Format": ("Json",)},
    read_others: {
        "Content": ("Identifiers", "Length", "Quotes", "Sources", "Mention"),
        "Citations": ("In-text",),
        "References": ("Format",),
        "Format": (
            "Markdown: Block quotes",
            "Text",
            "Bullet Points",
            "XML",
            "Blurb",
            "Length",
        ),
        "XML": ("Number of attributes",),
        "Table": ("Table",),
    },
}


def _register(name: str, read: Callable[[str], Rule]) -> None:
    """One check that reads its requirement from its text, and remembers what it read."""
    reader = lru_cache(maxsize=4096)(read)

    def unreadable(*, text: str) -> str:
        try:
            reader(text)
        except ValueError as error:
            return f"{error}: {text!r:.60}"
        return ""

    def check(response: str, *, text: str) -> bool:
        return reader(text)(response)

    register(name, description="{text}", judges_blank=True, unreadable=unreadable)(check)


for _read, _labels in _READERS.items():
    for _first, _seconds in _labels.items():
        for _second in _seconds:
            _register(f"muldimif/{_first}/{_second}", _read)
