"""HTML from parts in which every text is escaped: what a model wrote is never markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NewType

Html = NewType("Html", str)
"""Markup. A plain `str` is text and is escaped where it meets markup."""


def text(value: object) -> Html:
    """The value as text, safe in element content and in quoted attributes."""
    return Html(escape(str(value), quote=True))


def tag(name: str, *children: Html, css: str = "", **attributes: str) -> Html:
    """One element; `css` is its class."""
    given = {"class": css, **attributes} if css else attributes
    shown = "".join(f' {key}="{escape(value, quote=True)}"' for key, value in given.items())
    return Html(f"<{name}{shown}>{''.join(children)}</{name}>")


def join(parts: Iterable[Html], separator: str = "") -> Html:
    """Markup one after the other; `separator` is text."""
    return Html(escape(separator).join(parts))


def table(head: Iterable[str], rows: Iterable[Iterable[Html]], *, css: str = "") -> Html:
    """A table; the first column holds names, the others numbers."""
    top = tag("tr", *(tag("th", text(title)) for title in head))
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    whole = tag("table", tag("thead", top), tag("tbody", *body), css=css)
    return tag("div", whole, css="scroll")
