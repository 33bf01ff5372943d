"""Prepared rows that are there already: whether they are those that a row asks for.

`herl data` says in the folder's `report.json` how it made them: set, inputs, options, counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from herl_megatron.config.paths import aside
from herl_megatron.data.sources.catalog import SOURCES
from herl_megatron.data.sources.common import Options
from herl_megatron.data.sources.read import fingerprint, parse_input
from herl_megatron.data.sources.splits import OUTPUTS
from herl_megatron.files.strict_json import read_object
from herl_megatron.reproduce.data_sets import Origin

REPORT = "report.json"
"""As `herl data` writes it beside the rows."""
_BY_A_TOKENIZER = ("prompt too long", "refused by the chat template")
"""Kinds of rejected rows that only an option of `herl data` makes, which no chain gives."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class WantedRows:
    """What a stage would prepare.

    name: of --input. given: the place of --input, or the empty string: that of `origin`, or
    whatever holds the same rows. options: words of `herl data`. files: the rows, in `folder`; the
    first is the one whose size is known.
    """

    name: str
    origin: Origin
    given: str
    options: tuple[str, ...]
    folder: Path
    files: tuple[Path, ...]

    def differs(self) -> str:
        """How the rows in the folder are others, and what to do, or the empty string; of rows that
        are all there."""
        try:
            report = read_object(self.folder / REPORT)
            said = [text for text in self._differences(report) if text]
        except ValueError as error:
            said = [str(error)]
        if not said:
            return ""
        instead = "" if not self.given else f", or leave --input {self.name} away if they are right"
        return (
            f"{self.folder} holds other rows than this row asks for: {'; '.join(said)}. Move it"
            f" away (mv {self.folder} {aside(self.folder)}), or run in another folder{instead}"
        )

    def _differences(self, report: Mapping[str, Any]) -> Iterator[str]:
        then = report.get("source")
        if then != self.origin.source:
            yield f"of the set {then!r:.40}, not {self.origin.source!r}"
            return
        yield from self._other_options(report)
        yield from self._other_counts(report)
        yield self._other_input(report)

    def _other_options(self, report: Mapping[str, Any]) -> Iterator[str]:
        """An option that the report does not have is one of a later version: it was not given."""
        then = asdict(Options()) | {"types": []} | dict(_mapping(report, "options"))
        for key, now in report_options(self.origin.source, self.options).items():
            if then.get(key) != now:
                yield f"made with {key} {_json(then.get(key))}, not {_json(now)}"
        rejected = _mapping(report, "rejected")
        for kind in _BY_A_TOKENIZER:
            if rejected.get(kind):
                yield f"made without {_text(rejected[kind])} rows ({kind})"
        holds = SOURCES[self.origin.source].holds
        own = {*OUTPUTS, *([holds.title] if holds else [])}
        for where, count in _mapping(report, "leaked").items():
            if where not in own and count:
                yield f"made without {_text(count)} rows that {_text(where)} has too"

    def _other_counts(self, report: Mapping[str, Any]) -> Iterator[str]:
        counts = _mapping(report, "rows")
        for file in self.files:
            then, now = counts.get(file.stem, 0), _lines(file)
            if then != now:
                yield f"{file.name} has {now} rows, not {then!r:.20} as {REPORT} says"

    def _other_input(self, report: Mapping[str, Any]) -> str:
        inputs = report.get("inputs")
        then = inputs if isinstance(inputs, list) else []
        then = [one for one in then if isinstance(one, Mapping)]
        if len(then) == 1 and self._is_same_input(then[0]):
            return ""
        count = _mapping(report, "rows").get(self.files[0].stem, 0)
        if not self.given and count in self.origin.sizes:
            return ""  # the whole set, wherever it lay
        places = ", ".join(_text(one.get("place")) for one in then) or "nobody knows what"
        if self.given:
            return f"made from {places}, not {self.given}"
        sizes = " or ".join(f"{size:,}" for size in self.origin.sizes)
        return (
            f"made from {places} with {_text(count)} rows in {self.files[0].name}, and"
            f" {self.origin.place} has {sizes}; if it is meant, give --input {self.name}={places}"
        )

    def _is_same_input(self, then: Mapping[str, Any]) -> bool:
        """By content where that is known: of a file that is there. Else by its place."""
        now = parse_input(self.given or self.origin.place, "")
        if (then.get("split", ""), then.get("config", "")) != (now.split, now.config):
            return False
        if digest := fingerprint(now):
            return bool(then.get("sha256") == digest)
        places = [now.place] if self.given else [now.place, self.origin.fetched]
        return _resolved(str(then.get("place"))) in map(_resolved, places)


def report_options(source: str, words: tuple[str, ...]) -> dict[str, Any]:
    """What `options` of `report.json` is for these words of `herl data`: those of the chains."""
    options = Options(judge="--no-judge" not in words, benchmark="--benchmark" in words)
    more = {"types": [], "eval_share": SOURCES[source].eval_share, "seed": 0}
    if "--aggregation" in words:
        more["aggregation"] = words[words.index("--aggregation") + 1]
    return asdict(options) | more


def _mapping(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = report.get(key)
    if not isinstance(found, Mapping):
        raise ValueError(f"{REPORT} has no {key}: it is not what `herl data` writes")
    return found


def _lines(file: Path) -> int:
    with open(file, "rb") as opened:
        return sum(block.count(b"\n") for block in iter(lambda: opened.read(_BLOCK_BYTES), b""))


def _resolved(place: str) -> Path:
    return Path(os.path.expanduser(place)).resolve()  # Path's own fails for an unknown user


def _text(value: object) -> str:
    """Of somebody else's value: what a terminal can show."""
    return str(value).encode(errors="replace").decode()[:200]


def _json(value: object) -> str:
    return json.dumps(value, default=str, allow_nan=False)[:40]
