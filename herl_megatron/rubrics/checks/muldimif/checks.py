"""Registration of MulDimIF's rules under the labels of the data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from herl_megatron.rubrics.checks.muldimif.keywords import read_keywords, read_without_keywords
from herl_megatron.rubrics.checks.muldimif.language import read_chinese, read_english
from herl_megatron.rubrics.checks.muldimif.lengths import (
    asks_of_each,
    read_paragraphs,
    read_sentences,
    read_words,
)
from herl_megatron.rubrics.checks.muldimif.markdown import read_markdown
from herl_megatron.rubrics.checks.muldimif.others import read_json, read_others
from herl_megatron.rubrics.checks.muldimif.punctuation import read_punctuation
from herl_megatron.rubrics.checks.muldimif.reading import Rule
from herl_megatron.rubrics.checks.muldimif.table_cells import read_table
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


# What the benchmark says of a text in which it finds no requirement, where that is always the same.
_CONSTANTS: dict[Callable[[str], Rule], bool] = {
    read_markdown: True,
    read_sentences: True,
    read_table: True,
    read_paragraphs: False,
    read_english: False,
    read_chinese: False,
    read_json: False,
}


def _unread(read: Callable[[str], Rule], text: str) -> Rule:
    """The benchmark's rule of a text that `read` cannot read."""
    if read is read_keywords:
        return read_without_keywords(text)
    if read is read_words:
        constant = not asks_of_each(text)
    elif read is read_others:
        constant = "be in full sentences" in text
    else:
        constant = _CONSTANTS[read]
    return lambda response: constant


def _register(name: str, read: Callable[[str], Rule]) -> None:
    """One check that reads its requirement from its text, and remembers what it read.

    With `benchmark` it has a verdict for every text, as the benchmark has, for numbers that
    compare; without, a text in which it finds no requirement is unreadable.
    """
    reader = lru_cache(maxsize=4096)(read)

    def unreadable(*, text: str, benchmark: bool) -> str:
        try:
            reader(text)
        except ValueError as error:
            return "" if benchmark else f"{error}: {text!r:.60}"
        return ""

    def check(response: str, *, text: str, benchmark: bool = False) -> bool:
        try:
            rule = reader(text)
        except ValueError:
            if not benchmark:
                raise
            rule = _unread(read, text)
        return rule(response)

    register(name, description="{text}", judges_blank=True, unreadable=unreadable)(check)


for _read, _labels in _READERS.items():
    for _first, _seconds in _labels.items():
        for _second in _seconds:
            _register(f"muldimif/{_first}/{_second}", _read)
