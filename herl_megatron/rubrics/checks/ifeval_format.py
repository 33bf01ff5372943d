"""IFEval checks about form, case and language, with the benchmark's semantics."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import AfterValidator

from herl_megatron.rubrics.checks.check_parameters import Stripped, Text, compilable
from herl_megatron.rubrics.checks.registry import register

# Those that langdetect knows, its two of Chinese under the benchmark's names.
_LANGUAGES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr "
    "ne nl no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh zh-tw"
).split()


def _known_language(code: str) -> str:
    if code not in _LANGUAGES:
        fix = "write zh" if code == "zh-cn" else f"use one of {', '.join(_LANGUAGES)}"
        raise ValueError(f"no text is ever found to be of the language {code!r}; {fix}")
    return code


def _marker(text: str) -> str:
    if text not in _KNOWN_MARKERS:
        compilable(text.lower())
    return text


Language = Annotated[str, AfterValidator(_known_language)]
Marker = Annotated[Stripped, AfterValidator(_marker)]
_KNOWN_MARKERS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}

_ENGLISH_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# "My answer is" affirmative, negative, possible, perhaps, uncertain; the HIR release accepts them.
_CHINESE_ANSWERS = tuple(
    "\u6211\u7684\u7b54\u6848\u662f" + ending
    for ending in (
        "\u80af\u5b9a\u7684",
        "\u5426\u5b9a\u7684",
        "\u53ef\u80fd",
        "\u4e5f\u8bb8",
        "\u4e0d\u786e\u5b9a",
    )
)


@register(
    "ifeval/detectable_content:postscript",
    description="Add a postscript starting with {postscript_marker}",
)
def postscript(response: str, *, postscript_marker: Marker) -> bool:
    """The marker occurs anywhere; the usual two may have a space between their letters."""
    marker = _KNOWN_MARKERS.get(postscript_marker, postscript_marker.lower())
    return re.search(marker, response.lower()) is not None


@register(
    "ifeval/detectable_format:constrained_response",
    description='Answer with "My answer is yes.", "My answer is no." or "My answer is maybe."',
)
def constrained_response(response: str) -> bool:
    """One of three English answers (case and full stop included) or five Chinese ones occurs."""
    return any(answer in response for answer in (*_ENGLISH_ANSWERS, *_CHINESE_ANSWERS))


@register("ifeval/detectable_format:json_format", description="Write the whole response as JSON.")
def json_format(response: str) -> bool:
    """JSON, bare or in one Markdown code fence."""
    text = response.strip()
    for prefix in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(prefix)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@register("ifeval/detectable_format:title", description="Add a title in double angular brackets.")
def title(response: str) -> bool:
    """Some `<<...>>` on one line holds more than brackets and blanks."""
    for line in response.split("\n"):
        opened, closed = line.find("<<"), line.rfind(">>")
        if 0 <= opened < closed - 2 and line[opened:closed].lstrip("<").rstrip(">").strip():
            return True
    return False


@register(
    "ifeval/combination:two_responses",
    description="Give two different responses separated by ******.",
)
def two_responses(response: str) -> bool:
    """Two different pieces around `******`; blank pieces only at the ends."""
    pieces = [piece.strip() for piece in response.split("******")]
    filled = [piece for piece in pieces if piece]
    return all(pieces[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


@register(
    "ifeval/combination:repeat_prompt",
    description="First repeat this request word for word, then answer: {prompt_to_repeat}",
)
def repeat_prompt(response: str, *, prompt_to_repeat: Text) -> bool:
    """The response starts with the prompt, without regard to case."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@register("ifeval/startend:end_checker", description="End with the phrase: {end_phrase}")
def end_checker(response: str, *, end_phrase: Text) -> bool:
    """The response, outer double quotes aside, ends with the phrase, without regard to case."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@register("ifeval/startend:quotation", description="Wrap the response in double quotation marks.")
def quotation(response: str) -> bool:
    """First and last characters are ASCII double quotes."""
    text = response.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


@register("ifeval/punctuation:no_comma", description="Do not use commas.")
def no_comma(response: str) -> bool:
    """No ASCII comma."""
    return "," not in response


@register(
    "ifeval/change_case:english_capital",
    description="Write in English and use only capital letters.",
    requires=("langdetect",),
)
def english_capital(response: str) -> bool:
    """Upper case throughout, and English by langdetect."""
    return response.isupper() and _is_language(response, "en")


@register(
    "ifeval/change_case:english_lowercase",
    description="Write in English and use only lowercase letters.",
    requires=("langdetect",),
)
def english_lowercase(response: str) -> bool:
    """Lower case throughout, and English by langdetect."""
    return response.islower() and _is_language(response, "en")


@register(
    "ifeval/language:response_language",
    description="Write the whole response in the language with the code {language}.",
    requires=("langdetect",),
)
def response_language(response: str, *, language: Language) -> bool:
    """The language by langdetect; Simplified Chinese counts as `zh`."""
    return _is_language(response, language)


def _is_language(response: str, code: str) -> bool:
    """The verdict of langdetect; text without letters passes any language, as in the benchmark."""
    found = detected_language(response)
    return found is None or found == code


def detected_language(text: str) -> str | None:
    """The code of a text's language by langdetect with a fixed seed; None without letters."""
    # Imported here, and before by `libraries`: it is needed by few checks and its profiles take a
    # second to load.
    from langdetect import DetectorFactory, detect
    from langdetect.lang_detect_exception import ErrorCode, LangDetectException

    DetectorFactory.seed = 0
    try:
        found = str(detect(text))
    except LangDetectException as error:
        if error.get_code() != ErrorCode.CantDetectError:
            raise  # not about the text: its profiles are missing or broken
        return None
    return "zh" if found == "zh-cn" else found
