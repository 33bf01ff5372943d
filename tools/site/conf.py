"""The documentation as a site, by Sphinx: `bash tools/docs.sh`."""

from __future__ import annotations

import re
from typing import Any

project = "herl_megatron"
copyright = "the herl_megatron authors"
extensions = ["myst_parser"]
root_doc = "README"
exclude_patterns = ["examples", "results"]
myst_heading_anchors = 3
myst_enable_extensions: list[str] = []
html_theme = "furo"
html_title = "herl_megatron"
pygments_style = "friendly"
suppress_warnings = ["misc.highlighting_failure"]  # a block may have a language of no lexer (jsonl)

CHAPTERS = {
    "Start": ("quickstart", "real_model", "status", "results"),
    "Method": ("algorithm", "scoring", "data", "evaluation", "tokens"),
    "Use": ("commands", "configuration", "python", "watching", "metrics"),
    "Large runs": ("scaling", "planning", "fault_tolerance", "reproduce"),
    "Mend and change": (
        "troubleshooting",
        "debugging",
        "architecture",
        "extending",
        "extending_algorithms",
        "extending_methods",
        "extending_rewards",
    ),
}
"""Pages in the order of the site's contents; one that is in none is a warning, thus an error."""
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def setup(app: Any) -> None:
    """Pages are read as they are on GitHub, but for two things."""
    app.connect("source-read", _adapt)


def _adapt(app: Any, page: str, source: list[str]) -> None:
    """Links to files that are not on the site become their names; contents on the first page."""
    source[0] = _OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2].removeprefix('../')}`)", source[0])
    if page == root_doc:
        trees = (
            "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```"])
            for caption, pages in CHAPTERS.items()
        )
        source[0] += "\n" + "\n".join(trees)
