"""What the checks take from NLTK, loaded when first used: importing NLTK takes half a second.

NLTK looks for its data in `NLTK_DATA` and a few standard folders. A check names what it needs when
it is registered (`requires=("nltk",)`, `data=...`), so that it is loaded before any time limit
(`libraries`), and is unverifiable where that is missing; nothing is downloaded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PUNKT = "tokenizers/punkt_tab/english/"
TAGGER = "taggers/averaged_perceptron_tagger_eng/"
STOPWORDS = "corpora/stopwords"


@lru_cache
def missing_data(resource: str) -> str:
    """Why an NLTK resource cannot be used, or the empty string. Looked up once per process."""
    try:
        import nltk

        nltk.data.find(resource)
    except ImportError:
        return "needs the package nltk"
    except (LookupError, OSError, ValueError):
        package = resource.split("/")[1]
        return (
            f"the NLTK data package {package!r} is not found; "
            f"set NLTK_DATA or run: python -m nltk.downloader {package}"
        )
    return ""


def warm_up(resource: str) -> None:
    """Load a resource that is there and use it once; raises what goes wrong."""
    match resource:
        case _ if resource == PUNKT:
            split_sentences("Dr. Wren saw it at 5 p.m. (twice). Did she? Yes...")
        case _ if resource == TAGGER:
            if str(_tagger().tag(["Write", "a", "letter", "."])[3][1]) != ".":
                raise RuntimeError("it gives other tags than expected")
        case _ if resource == STOPWORDS:
            if "the" not in stopwords():
                raise RuntimeError("the list is incomplete")


def tokens(text: str) -> list[str]:
    """NLTK's Treebank tokens of the text taken as one line; needs no data."""
    return [str(token) for token in _treebank().tokenize(text)]


def split_sentences(text: str) -> list[str]:
    """Sentences by the English Punkt model (`PUNKT`)."""
    return [str(sentence) for sentence in _punkt().tokenize(text)]


def first_word_tag(text: str) -> str:
    """Part of speech of the first token (`PUNKT` and `TAGGER`), "" if there is none."""
    words = [token for sentence in split_sentences(text) for token in tokens(sentence)]
    # The tagger looks two words ahead, so the rest of the text cannot change the first tag.
    tagged = _tagger().tag(words[:8])
    return str(tagged[0][1]) if tagged else ""


@lru_cache
def stopwords() -> frozenset[str]:
    """NLTK's English stop words (`STOPWORDS`)."""
    from nltk.corpus import stopwords as corpus

    return frozenset(corpus.words("english"))


@lru_cache
def _treebank() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache
def _punkt() -> Any:
    from nltk.tokenize.punkt import PunktTokenizer

    return PunktTokenizer("english")


@lru_cache
def _tagger() -> Any:
    from nltk.tag.perceptron import PerceptronTagger

    return PerceptronTagger(lang="eng")
