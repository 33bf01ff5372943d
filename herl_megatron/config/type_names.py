"""Types of keys in words, for messages and for docs/configuration.md."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel


def type_name(annotation: Any) -> str:
    """`int`, `'a' | 'b'`, `int | None`, `a list of str`, `names with anything` or `a section of
    keys`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section of keys"
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if get_origin(annotation) is tuple:
        return f"a list of {type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"names with {type_name(get_args(annotation)[1])}"
    if isinstance(annotation, type):
        return annotation.__name__
    return " | ".join(
        type_name(arg) if isinstance(arg, type) or get_args(arg) else repr(arg)
        for arg in get_args(annotation)
    )
