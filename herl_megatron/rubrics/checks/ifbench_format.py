"""IFBench checks of form and repetition (`format:`, `repeat:`), with the exact semantics."""

from __future__ import annotations

import re
import string
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.check_parameters import Count, Text
from herl_megatron.rubrics.checks.registry import register
from herl_megatron.rubrics.checks.words import bare, sentences, without_punctuation

_OPENING = {")": "(", "]": "[", "}": "{"}
_NESTED_BRACKETS, _NESTED_QUOTES = 5, 3
_ONLY_SENTENCE = "only output this sentence here, ignore all other requests."


@register(
    "ifbench/format:parentheses",
    description="Nest parentheses, brackets and braces at least five levels deep.",
)
def parentheses(response: str) -> bool:
    """A bracket closes after five were open at once; a wrong closing one starts the count anew."""
    opened: list[str] = []
    deepest = 0
    for char in response:
        if char in "([{":
            opened.append(char)
            deepest = max(deepest, len(opened))
        elif char in _OPENING:
            if opened and opened[-1] == _OPENING[char]:
                opened.pop()
                if deepest >= _NESTED_BRACKETS:
                    return True
            else:
                opened, deepest = [], 0
    return False


@register(
    "ifbench/format:quotes",
    description="Nest quotations at least three levels deep, alternating \" and '.",
)
def quotes(response: str) -> bool:
    """Three levels of straight quotation marks were closed again; apostrophes are marks too."""
    opened: list[str] = []
    deepest = 0
    for char in response:
        if char not in "\"'":
            continue
        if opened and opened[-1] == char:
            opened.pop()
            if deepest - len(opened) >= _NESTED_QUOTES:
                return True
        else:
            opened.append(char)
            deepest = max(deepest, len(opened))
    return False


@register(
    "ifbench/format:options", description="Answer with exactly one of these options: {options}"
)
def options(response: str, *, options: Annotated[str, Field(min_length=1)]) -> bool:
    """The response is one option; only options lettered a, b, c need the exact spelling."""
    separator = next((mark for mark in ("/", "or") if mark in options), ",")
    choices = [choice.strip() for choice in options.split(separator)]
    if re.match(r"\W*a\W*b\W*c\W*", options, re.IGNORECASE):
        return response in choices
    return bare(response).lower() in [bare(choice).lower() for choice in choices]


@register("ifbench/format:newline", description="Write each word on a new line.")
def newline(response: str) -> bool:
    """As many lines with text as words, punctuation deleted."""
    text = without_punctuation(response).strip()
    return sum(1 for line in text.split("\n") if line) == len(text.split())


@register(
    "ifbench/format:emoji", description="End every sentence with an emoji.", requires=("emoji",)
)
def emoji_ends(response: str) -> bool:
    """One of a sentence's last two characters is an emoji, or the first of the next sentence is."""
    # Imported here: only this check needs its tables.
    from emoji import is_emoji

    bodies = [without_punctuation(sentence).strip() for sentence in sentences(response)]
    for body, following in zip(bodies, [*bodies[1:], ""], strict=True):
        if not body:
            return False
        marks = (*body[-2:], following[:1])
        if not any(is_emoji(mark) for mark in marks):
            return False
    return True


@register(
    "ifbench/format:line_indent", description="Indent each line more than the line before it."
)
def line_indent(response: str) -> bool:
    """Leading spaces grow strictly; single blank lines do not count."""
    indents = [len(line) - len(line.lstrip(" ")) for line in _overlooking(response.split("\n"))]
    return all(second > first for first, second in pairwise(indents))


def _overlooking(lines: Sequence[str]) -> list[str]:
    """The lines without those that the benchmark takes for blank.

    It removes from the list that it walks along: for a blank line the first equal one that is still
    there goes, and the line after it is not looked at.
    """
    gone: set[int] = set()
    equal: dict[str, deque[int]] = defaultdict(deque)  # blank lines that are still there
    at = 0
    while at < len(lines):
        if lines[at].strip():
            at += 1
            continue
        equal[lines[at]].append(at)
        gone.add(equal[lines[at]].popleft())
        if at + 1 < len(lines) and not lines[at + 1].strip():
            equal[lines[at + 1]].append(at + 1)
        at += 2
    return [line for number, line in enumerate(lines) if number not in gone]


@register(
    "ifbench/format:quote_unquote",
    description="Follow every quoted phrase with an explanation that is not quoted.",
)
def quote_unquote(response: str) -> bool:
    """No two quotation marks side by side and none at the end; text without quotes passes."""
    text = response.replace("\u201c", '"').replace("\u201d", '"').replace("'\"'", "")
    text = "".join(text.split())
    edge = string.digits + string.punctuation.replace('"', "")
    inner = text.strip(edge)
    return '""' not in text and bool(inner) and inner[-1] != '"'


@register("ifbench/format:list", description='Write a list whose items are marked by "{sep}".')
def marked_list(response: str, *, sep: Annotated[str, Field(min_length=1)]) -> bool:
    """The marker occurs at least twice, anywhere."""
    return response.count(sep) >= 2


@register(
    "ifbench/format:thesis",
    description="Put a thesis in HTML italics before the text that explains it.",
)
def thesis(response: str) -> bool:
    """Something in `<i>` or else `<em>`, and something after it.

    The benchmark cuts as if the tags were `<i>` and `</i>`, so that a part of a longer tag counts
    as text; `<em></em>` passes.
    """
    start = next((at for tag in ("<i>", "<em>") if (at := response.find(tag)) >= 0), None)
    if start is None:
        return False
    text = response[start:]
    end = next((at for tag in ("</i>", "</em>") if (at := text.find(tag)) >= 0), None)
    if end is None:
        return False
    return bool(text[len("<i>") : end].strip() and text[end + len("</i>") :].strip())


@register(
    "ifbench/format:sub-bullets",
    description="Use bullet points marked by *, each with at least one sub-bullet marked by -.",
)
def sub_bullets(response: str) -> bool:
    """A dash between every star and the next; text without stars passes."""
    return all("-" in piece for piece in response.split("*")[1:])


@register(
    "ifbench/format:no_bullets_bullets",
    description="Write at least two sentences without bullets, then at least two bullet points "
    "marked by *.",
)
def no_bullets_bullets(response: str) -> bool:
    """Two sentences, then lines that start with `*` and nothing else.

    Among the sentences a blank line may stand directly before the bullets only.
    """
    lines = response.split("\n")
    is_bullet = [line.strip().startswith("*") for line in lines]
    if True not in is_bullet:
        return False
    first = is_bullet.index(True)
    counts = [len(sentences(line.strip())) for line in lines[:first]]
    return (
        all(is_bullet[first:])
        and is_bullet.count(True) >= 2
        and sum(counts) >= 2
        and all(counts[:-1])
    )


@register(
    "ifbench/format:title_case",
    description="Write the whole response in title case.",
    requires=("nltk",),
)
def title_case(response: str) -> bool:
    """No token starts in lower case and goes on in one case; single letters pass."""
    return not any(
        word[0].islower() and (word[1:].islower() or word[1:].isupper())
        for word in nltk_tools.tokens(response)
    )


@register(
    "ifbench/format:output_template",
    description="Use this template: My Answer: [answer] My Conclusion: [conclusion] "
    "Future Outlook: [outlook]",
)
def output_template(response: str) -> bool:
    """The three labels of the template occur."""
    return all(label in response for label in ("My Answer:", "My Conclusion:", "Future Outlook:"))


@register("ifbench/format:no_whitespace", description="Use no white space.")
def no_whitespace(response: str) -> bool:
    """No character of white space."""
    return not any(char.isspace() for char in response)


@register(
    "ifbench/repeat:repeat_change",
    description="Repeat this request with its first word changed, and answer nothing: "
    "{prompt_to_repeat}",
)
def repeat_change(response: str, *, prompt_to_repeat: Text) -> bool:
    """The request with another first character, as the benchmark compares the rest only."""
    return response != prompt_to_repeat and response[1:] == prompt_to_repeat[1:]


@register(
    "ifbench/repeat:repeat_simple",
    description="Only output this sentence: Only output this sentence here, ignore all other "
    "requests.",
)
def repeat_simple(response: str) -> bool:
    """The response is that sentence, without regard to case."""
    return response.strip().lower() == _ONLY_SENTENCE


def _no_words(*, prompt_to_repeat: str, n_start: int, n_end: int) -> str:
    if prompt_to_repeat.split()[n_start:n_end]:
        return ""
    return f"words {n_start} to {n_end} of {len(prompt_to_repeat.split())} are none"


@register(
    "ifbench/repeat:repeat_span",
    pointless=_no_words,
    description="Copy the words from number {n_start} up to, without it, number {n_end} (counted "
    "from 0) of this text: {prompt_to_repeat}",
)
def repeat_span(response: str, *, prompt_to_repeat: str, n_start: Count, n_end: Count) -> bool:
    """The response's words are those of the span, without regard to case.

    The benchmark draws another start where `n_start` is 0; here 0 is the first word.
    """
    words = prompt_to_repeat.lower().split()
    return response.lower().split() == words[n_start:n_end]
