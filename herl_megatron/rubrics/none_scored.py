"""When no response at all has a score there is nothing to go on with: the error that says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from herl_megatron.types import Score, Unscored

_REASONS_SHOWN = 3


def require_any_score(scores: Iterable[Score], *, of: str = "") -> None:
    """Nothing, if a response has a score.

    of: what the responses are of, for the message.

    Raises:
        RuntimeError: none has one; names how many there were and the most frequent reasons.
    """
    all_scores = list(scores)
    reasons = Counter(score.reason for score in all_scores if isinstance(score, Unscored))
    if reasons.total() < len(all_scores):
        return
    shown = "; ".join(f"{count} x {text}" for text, count in reasons.most_common(_REASONS_SHOWN))
    whose = f"{of}: " if of else ""
    raise RuntimeError(f"{whose}none of {len(all_scores)} responses could be scored: {shown}")
