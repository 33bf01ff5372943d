"""Libraries that checks use: imported and warmed up once per process, outside of every time limit.

A limit that goes off inside an import or a half-loaded table leaves the library broken for the
life of the process, and what a broken library says is no verdict. So a check names what it uses
(`register(requires=...)`), which is made ready before the check runs; what cannot be made ready
leaves it unverifiable for every response.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache

from herl_megatron.rubrics.checks import nltk_tools

_log = logging.getLogger(__name__)
_PROBE = "The owls are awake all night and sleep in the old oak by day. We saw Dr. Wren there."
"""Enough for every table of a library to be looked at; plain English."""


def library_problem(name: str) -> str:
    """Make a library ready: why it cannot be used, or the empty string.

    `name` is a package, or a resource of NLTK (`tokenizers/...`). Tried once per process: what
    failed halfway stays out of use.
    """
    if "/" in name:
        return _unready("nltk") or nltk_tools.missing_data(name) or _unready(name)
    return _unready(name)


@lru_cache
def _unready(name: str) -> str:
    if "/" in name:
        return _failure(name, lambda: nltk_tools.warm_up(name))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        return f"needs the package {name}, which cannot be looked up: {error}"
    if found is None:
        return f"needs the package {name}"
    return _failure(name, _WARM_UPS.get(name, lambda: importlib.import_module(name)))


def _failure(name: str, warm_up: Callable[[], object]) -> str:
    try:
        warm_up()
    except Exception as error:  # A broken installation or disk may raise anything.
        _log.warning("%s cannot be used: %r", name, error)
        return f"{name} cannot be used here ({type(error).__name__}: {error})"[:300]
    return ""


def _warm_langdetect() -> None:
    """Its profiles (a second to load), and a text whose language is known."""
    import langdetect
    from langdetect import detector_factory

    detector_factory.init_factory()
    known = set(detector_factory._factory.get_lang_list())
    langdetect.DetectorFactory.seed = 0
    found = langdetect.detect(_PROBE)
    if found != "en" or not {"en", "de", "zh-cn", "ja", "ar"} <= known:
        raise RuntimeError(
            f"its profiles are incomplete ({len(known)}); English is taken as {found}"
        )


def _warm_nltk() -> None:
    nltk_tools.tokens(_PROBE)


def _warm_syllapy() -> None:
    import syllapy

    if syllapy.count("window") != 2:
        raise RuntimeError("its dictionary is incomplete")


def _warm_emoji() -> None:
    import emoji

    if not emoji.is_emoji("\N{OWL}"):
        raise RuntimeError("its table is incomplete")


def _warm_math_verify() -> None:
    """Its grammar and patterns (a second to load), and its note that no limit of its own is set:
    ours is (`time_limit`)."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    from math_verify import parse, verify

    def equal(one: str, other: str) -> bool:
        left, right = (parse(text, parsing_timeout=None) for text in (one, other))
        return bool(verify(left, right, timeout_seconds=None))

    if not equal(r"$\frac{1}{2}$", "0.5") or equal(r"$\frac{1}{2}$", "0.25"):
        raise RuntimeError("it does not know a half")


_WARM_UPS: dict[str, Callable[[], object]] = {
    "langdetect": _warm_langdetect,
    "nltk": _warm_nltk,
    "syllapy": _warm_syllapy,
    "emoji": _warm_emoji,
    "math_verify": _warm_math_verify,
}
