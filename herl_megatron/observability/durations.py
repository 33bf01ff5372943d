"""Seconds as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`0.4 s`, `73.5 s`, `2 min 05 s`, `1 h 33 min`, `2 d 04 h`: about three digits.

    Negative seconds, of a clock that was set back, are 0.
    """
    seconds = max(seconds, 0.0)
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"
