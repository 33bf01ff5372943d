"""IFBench checks of words and sentences (`words:`, `sentence:`), with the exact semantics."""

from __future__ import annotations

import string
from collections import Counter
from itertools import pairwise

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.check_parameters import (
    Count,
    Positive,
    Stripped,
    Text,
    token_problem,
)
from herl_megatron.rubrics.checks.registry import register
from herl_megatron.rubrics.checks.words import (
    bare,
    bare_left,
    bare_right,
    plain_words,
    sentences,
    without_punctuation,
)

_CONSONANTS = frozenset("bcdfghjklmnpqrstvwxyz")
_PRIMES = frozenset(n for n in range(2, 100) if all(n % d for d in range(2, n)))


@register(
    "ifbench/words:alphabet",
    description="Start each word with the next letter of the alphabet, going back to A after Z.",
)
def alphabet(response: str) -> bool:
    """First letters follow each other around the alphabet, from any letter on."""
    initials = [word[0] for word in plain_words(response)]
    letters = string.ascii_lowercase
    if not initials or initials[0] not in letters:
        return False
    start = letters.index(initials[0])
    return all(initial == letters[(start + offset) % 26] for offset, initial in enumerate(initials))


@register(
    "ifbench/words:vowel", description="Write one paragraph with at most three different vowels."
)
def vowel(response: str) -> bool:
    """One line, with at most three of a, e, i, o, u."""
    text = response.strip().lower()
    return "\n" not in text and len(set(text) & set("aeiou")) <= 3


@register(
    "ifbench/words:consonants",
    description="Let every word have at least one cluster of consonants.",
)
def consonants(response: str) -> bool:
    """Two neighbouring consonants (y is one) in every word."""
    return all(
        any(first in _CONSONANTS and second in _CONSONANTS for first, second in pairwise(word))
        for word in response.lower().split()
    )


@register(
    "ifbench/words:palindrome",
    description="Include at least ten palindromes of five or more letters.",
)
def palindrome(response: str) -> bool:
    """Palindromic words of length 5 or more; repetitions count."""
    found = [word for word in plain_words(response) if len(word) >= 5 and word == word[::-1]]
    return len(found) >= 10


@register("ifbench/words:prime_lengths", description="Use only words of a prime length.")
def prime_lengths(response: str) -> bool:
    """Every word's length, punctuation deleted, is a prime below 100."""
    return all(len(word) in _PRIMES for word in plain_words(response))


@register(
    "ifbench/words:start_verb",
    description="Start the response with a verb.",
    requires=("nltk",),
    data=(nltk_tools.PUNKT, nltk_tools.TAGGER),
)
def start_verb(response: str) -> bool:
    """NLTK tags the first token as a verb."""
    return "VB" in nltk_tools.first_word_tag(response)


@register("ifbench/words:repeats", description="Use no word more than {small_n} times.")
def repeats(response: str, *, small_n: Count) -> bool:
    """Occurrences of every word, without regard to case and punctuation."""
    return all(count <= small_n for count in Counter(plain_words(response)).values())


@register(
    "ifbench/words:odd_even_syllables",
    description="Alternate between words with odd and even numbers of syllables.",
    requires=("syllapy",),
)
def odd_even_syllables(response: str) -> bool:
    """Neighbouring words differ in the parity of their syllables."""
    # Imported here: only this check needs its dictionary.
    import syllapy

    parities = [syllapy.count(word) % 2 for word in plain_words(response)]
    return all(first != second for first, second in pairwise(parities))


@register(
    "ifbench/words:last_first",
    description="Start each sentence with the last word of the sentence before it.",
)
def last_first(response: str) -> bool:
    """Last and first words of neighbouring sentences; marks after the first word belong to it."""
    for before, after in pairwise(sentences(response)):
        last, first = bare_right(before).split(), bare_left(after).split()
        if not last or not first or last[-1].lower() != first[0].lower():
            return False
    return True


@register(
    "ifbench/words:paragraph_last_first",
    description="End each paragraph with the word it starts with.",
)
def paragraph_last_first(response: str) -> bool:
    """First and last word of every line that is not blank; a line of marks alone fails."""
    lines = [bare(line.strip().lower()).split() for line in response.split("\n") if line.strip()]
    return all(words and words[0] == words[-1] for words in lines)


@register(
    "ifbench/words:no_consecutive",
    description="Let no two neighbouring words start with the same letter.",
)
def no_consecutive(response: str) -> bool:
    """First characters of neighbouring words differ."""
    return all(first[0] != second[0] for first, second in pairwise(plain_words(response)))


def _no_token(*, keyword: str, **_position: int) -> str:
    return token_problem(keyword)


@register(
    "ifbench/words:keywords_specific_position",
    description='Make "{keyword}" word {m} of sentence {n}.',
    requires=("nltk",),
    pointless=_no_token,
)
def keywords_specific_position(
    response: str, *, keyword: Stripped, n: Positive, m: Positive
) -> bool:
    """The m-th token (marks are tokens) of the n-th sentence, case included."""
    found = sentences(response)
    if len(found) < n:
        return False
    words = nltk_tools.tokens(found[n - 1])
    return len(words) >= m and words[m - 1] == keyword


@register(
    "ifbench/words:words_position",
    description='Make "{keyword}" the second and the second to last word.',
    requires=("nltk",),
    pointless=_no_token,
)
def words_position(response: str, *, keyword: Stripped) -> bool:
    """The second and the second to last token (a closing mark is the last), case included."""
    words = nltk_tools.tokens(response)
    return len(words) >= 2 and words[1] == words[-2] == keyword


@register(
    "ifbench/sentence:alliteration_increment",
    description="Let each sentence have a longer run of alliterative words than the one before.",
)
def alliteration_increment(response: str) -> bool:
    """Words in runs of one first letter, per sentence, grow strictly."""
    counts = [_alliterative_words(sentence) for sentence in sentences(response)]
    return all(first < second for first, second in pairwise(counts))


def _alliterative_words(sentence: str) -> int:
    """Words that share their first letter with a neighbour."""
    words = [bare_left(word) for word in sentence.lower().split()]
    same = [first[0] == second[0] for first, second in pairwise([w for w in words if w])]
    starts = sum(1 for before, now in pairwise([False, *same]) if now and not before)
    return sum(same) + starts


@register("ifbench/sentence:keyword", description='Use the word "{word}" in sentence number {N}.')
def sentence_keyword(response: str, *, word: Text, N: Positive) -> bool:  # noqa: N803
    """The N-th sentence has the word as a substring, without regard to case."""
    found = sentences(response)
    return len(found) >= N and word.lower() in found[N - 1].lower()


@register(
    "ifbench/sentence:increment",
    description="Give each sentence exactly {small_n} more words than the one before.",
)
def increment(response: str, *, small_n: Count) -> bool:
    """Numbers of words of neighbouring sentences, words of punctuation alone aside."""
    counts = [len(without_punctuation(sentence).split()) for sentence in sentences(response)]
    return all(second == first + small_n for first, second in pairwise(counts))
