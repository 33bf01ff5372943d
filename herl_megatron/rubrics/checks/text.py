"""Our own checks on plain text, for rubrics that need no benchmark parity."""

from __future__ import annotations

from herl_megatron.rubrics.checks.registry import register


@register("text/all_uppercase", description="Use only capital letters.")
def all_uppercase(response: str) -> bool:
    """At least one letter, and every cased letter is upper case."""
    return response.isupper()


@register("text/all_lowercase", description="Use only lowercase letters.")
def all_lowercase(response: str) -> bool:
    """At least one letter, and every cased letter is lower case."""
    return response.islower()
