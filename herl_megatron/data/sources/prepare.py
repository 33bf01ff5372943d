"""A public data set to canonical rows: read, convert, check, split, write, report.

Every source row ends in exactly one file: train, validation, eval or rejected. The same inputs and
options write the same bytes. Files get their names when all of them are complete.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from herl_megatron.config.hub import local_folder
from herl_megatron.data.canonical_rows import prompt_from_row, row_from_prompt
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.data.sources.catalog import SOURCES, DataSource
from herl_megatron.data.sources.common import (
    Converted,
    Options,
    RejectedRow,
    SourceRow,
    prompt_key,
)
from herl_megatron.data.sources.hir_16k import TYPES
from herl_megatron.data.sources.known_sets import KnownSet
from herl_megatron.data.sources.read import BrokenRow, Input, RawRow, fingerprint, read_rows
from herl_megatron.data.sources.report import Report, Reported, build_report
from herl_megatron.data.sources.splits import OUTPUTS, Placed, leaks, own_splits, place

RESPONSES, REJECTED, REPORT = "responses.jsonl", "rejected.jsonl", "report.json"


@dataclass(frozen=True)
class Job:
    """What to prepare.

    eval_share: None takes the source's own. keep_out: canonical files (benchmarks) whose prompts
    must not be trained on. responses: the field with a model's response(s), if rows have one; they
    are then written to `responses.jsonl` too, for `herl score`. tokenizer: a Hugging Face folder
    for prompt lengths, empty for none. max_prompt_tokens: 0 is no limit; longer prompts are
    counted, and with `drop_long` rejected.
    """

    source: str
    inputs: tuple[Input, ...]
    out: Path
    options: Options = Options()
    eval_share: float | None = None
    seed: int = 0
    keep_out: tuple[str, ...] = ()
    responses: str = ""
    tokenizer: str = ""
    max_prompt_tokens: int = 0
    drop_long: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Rejected:
    """A source row that became no prompt, as `rejected.jsonl` keeps it."""

    row: int
    split: str
    kind: str
    reason: str
    data: Any


def prepare(job: Job) -> Report:
    """Write the files of `job.out` and return what `report.json` holds.

    Raises ValueError, before anything is written, for what a user can mend.
    """
    source = _check(job)
    raw = [row for given in job.inputs for row in read_rows(given)]
    rejected = [
        Rejected(row.number, row.split, "unreadable", row.reason, row.data)
        for row in raw
        if isinstance(row, BrokenRow)
    ]
    converted = _convert(raw, source, job.options, rejected)
    if job.eval_share is not None and (own := own_splits(converted)):
        raise ValueError(
            f"eval share is {job.eval_share:g}, but the rows have splits that hold some out already"
            f" ({', '.join(sorted(own))}); leave it out, or give one of them as SPLIT=PLACE"
        )
    share = source.eval_share if job.eval_share is None else job.eval_share
    placed = place(converted, eval_share=share, seed=job.seed)
    placed, leaked = _without_leaks(placed, job.keep_out, source.holds, rejected)
    if not job.options.benchmark:
        placed = _without_repeats(placed, rejected)
    placed, lengths = _templated(placed, job.tokenizer, rejected)
    if job.drop_long:
        placed, lengths = _without_long(placed, lengths, job.max_prompt_tokens, rejected)
    named = [_without_field(item, job.responses) for item in _unique_ids(placed)]
    if source.holds is not None:
        named = source.holds.named(named)
    if not named:
        kinds = Counter(item.kind for item in rejected)
        raise ValueError(
            f"no row of {', '.join(given.place for given in job.inputs)} became a prompt of "
            f"{job.source!r}: {dict(kinds.most_common(5))}; first: {rejected[0].reason}"
        )
    report = build_report(
        Reported(
            source=job.source,
            inputs=[asdict(given) | {"sha256": fingerprint(given)} for given in job.inputs],
            options=asdict(job.options)
            | {"types": list(job.options.types), "eval_share": share, "seed": job.seed},
            rows_in=len(raw),
            placed=named,
            rejected=[item.kind for item in rejected],
            lengths=lengths,
            max_prompt_tokens=job.max_prompt_tokens,
            leaked=leaked,
            holds=source.holds,
        )
    )
    files = _files(named, rejected, report)
    if job.responses:
        files[RESPONSES] = _with_responses(named, job.responses)
    _publish(job.out, files)
    return report


def _check(job: Job) -> DataSource:
    if job.source not in SOURCES:
        raise ValueError(f"unknown source {job.source!r}; use one of {', '.join(SOURCES)}")
    if job.eval_share is not None and not 0 <= job.eval_share <= 1:
        raise ValueError(f"eval share is {job.eval_share:g}; it is a part from 0 to 1")
    if job.max_prompt_tokens and not job.tokenizer:
        raise ValueError(f"a limit of {job.max_prompt_tokens} tokens needs a tokenizer to count by")
    if job.drop_long and not job.max_prompt_tokens:
        raise ValueError("long prompts can be dropped only with a limit of prompt tokens")
    if unknown := [name for name in job.options.types if name not in TYPES]:
        raise ValueError(f"row type {unknown[0]!r} is unknown; HIR-16K has {', '.join(TYPES)}")
    if job.options.types and job.source != "hir":
        raise ValueError(f"row types are HIR-16K's; {job.source!r} has none")
    old = [name for name in _names() if (job.out / name).exists()]
    if old and not job.overwrite:
        raise ValueError(
            f"{job.out} already holds {', '.join(old)}; take another folder or --overwrite"
        )
    return SOURCES[job.source]


def _names() -> list[str]:
    return [*(f"{output}.jsonl" for output in OUTPUTS), RESPONSES, REJECTED, REPORT]


def _convert(
    raw: Sequence[RawRow], source: DataSource, options: Options, rejected: list[Rejected]
) -> list[tuple[SourceRow, Converted]]:
    """Every row that becomes a prompt which can be read back; the others join `rejected`."""
    found = []
    rows = source.join([row for row in raw if isinstance(row, SourceRow)])
    for row in rows:
        try:
            converted = source.convert(row, options)
            _read_back(converted)
        except RejectedRow as error:
            rejected.append(_reject(row, error.kind, str(error)))
        else:
            found.append((row, converted))
    return found


def _read_back(converted: Converted) -> None:
    """The row as training will read it; RejectedRow where it would be refused."""
    try:
        row = json.loads(_json(row_from_prompt(converted.prompt)))
        # No half characters: none could be tokenized.
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        prompt_from_row(row)
    except ValueError as error:
        raise RejectedRow("no valid canonical row", str(error)) from error


def _reject(row: SourceRow, kind: str, reason: str) -> Rejected:
    return Rejected(row.number, row.split, kind, reason, dict(row.fields))


def _without_leaks(
    placed: Sequence[Placed],
    keep_out: Sequence[str],
    holds: KnownSet | None,
    rejected: list[Rejected],
) -> tuple[list[Placed], dict[str, int]]:
    """The rows, less those to train on that are held out elsewhere; how many those were by where
    they are, 0 for a benchmark of which there is none."""
    held_out = {
        prompt_key(prompt.messages): path for path in keep_out for prompt in load_prompts(path)
    }
    if holds is not None:
        held_out |= {item.key: holds.title for item in placed if holds.has(item)}
    leaked = leaks(placed, held_out)
    for item, output in leaked:
        kind = f"prompt of {item.output} is also in {output}"
        rejected.append(_reject(item.row, kind, "equal up to letter case and white space"))
    dropped = {id(item) for item, _ in leaked}
    counts = Counter(output for _, output in leaked)
    named = [*keep_out, *([holds.title] if holds else [])]
    return (
        [item for item in placed if id(item) not in dropped],
        {name: counts[name] for name in named} | dict(counts),
    )


def _without_repeats(placed: Sequence[Placed], rejected: list[Rejected]) -> list[Placed]:
    """Each prompt with one rubric once; the same prompt under another rubric stays."""
    first: dict[tuple[str, str], int] = {}
    kept = []
    for item in placed:
        same = (item.key, _json(row_from_prompt(item.converted.prompt)["rubric"]))
        if same in first:
            reason = f"the same prompt and rubric as row {first[same]}"
            rejected.append(_reject(item.row, "repeated row", reason))
        else:
            first[same] = item.row.number
            kept.append(item)
    return kept


def _templated(
    placed: Sequence[Placed], tokenizer: str, rejected: list[Rejected]
) -> tuple[list[Placed], list[int]]:
    """What the chat template takes, and prompt tokens after it, one per row; without a tokenizer
    all rows, and no lengths."""
    if not tokenizer:
        return list(placed), []
    chat = ChatTokenizer(str(local_folder(tokenizer, key="--tokenizer", weights=False)))
    kept, lengths = [], []
    for item in placed:
        try:
            lengths.append(len(chat.prompt_ids(item.converted.prompt.messages)))
        except ValueError as error:
            rejected.append(_reject(item.row, "refused by the chat template", str(error)))
        else:
            kept.append(item)
    return kept, lengths


def _without_long(
    placed: Sequence[Placed], lengths: Sequence[int], limit: int, rejected: list[Rejected]
) -> tuple[list[Placed], list[int]]:
    kept = [(item, tokens) for item, tokens in zip(placed, lengths, strict=True) if tokens <= limit]
    for item, tokens in zip(placed, lengths, strict=True):
        if tokens > limit:
            reason = f"the prompt has {tokens} tokens, the limit is {limit}"
            rejected.append(_reject(item.row, "prompt too long", reason))
    return [item for item, _ in kept], [tokens for _, tokens in kept]


def _unique_ids(placed: Sequence[Placed]) -> list[Placed]:
    """The second row with an id gets `#2` behind it (the next that is free), and a note."""
    given = {item.converted.prompt.id for item in placed}
    used: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    found = []
    for item in placed:
        prompt = item.converted.prompt
        if prompt.id in used:
            counter = numbers.setdefault(prompt.id, itertools.count(2))
            numbered = (f"{prompt.id}#{number}" for number in counter)
            prompt = replace(prompt, id=next(name for name in numbered if name not in given))
            notes = (*item.converted.notes, "id used before: numbered")
            item = replace(item, converted=Converted(prompt, notes))
        used.add(prompt.id)
        found.append(item)
    return found


def _without_field(item: Placed, name: str) -> Placed:
    """Without a field of the source under `extra`: responses do not belong to the prompt."""
    prompt = item.converted.prompt
    if not name or name not in prompt.extra:
        return item
    extra = {key: value for key, value in prompt.extra.items() if key != name}
    return replace(item, converted=replace(item.converted, prompt=replace(prompt, extra=extra)))


def _with_responses(placed: Sequence[Placed], name: str) -> list[str]:
    """Rows for `herl score`; ValueError where none has a response. Those without are left out."""
    lines = []
    for item in placed:
        given = item.row.fields.get(name)
        if isinstance(given, (str, list)):
            key = "response" if isinstance(given, str) else "responses"
            lines.append(_json(row_from_prompt(item.converted.prompt) | {key: given}))
    if not lines:
        fields = ", ".join(map(str, placed[0].row.fields))
        raise ValueError(f"no row has responses under {name!r}; the first has {fields}")
    return lines


def _files(
    placed: Sequence[Placed], rejected: Sequence[Rejected], report: Report
) -> dict[str, list[str]]:
    """Lines by file name; a file without rows is not written, for it could not be read."""
    files = {
        f"{output}.jsonl": [
            _json(row_from_prompt(item.converted.prompt))
            for item in placed
            if item.output == output
        ]
        for output in OUTPUTS
    }
    ordered = sorted(rejected, key=lambda item: (item.split, item.row))
    # What was rejected may hold half characters, which Python reads back, or NaN.
    files[REJECTED] = [_json(_spelled(asdict(item))) for item in ordered]
    files[REPORT] = [json.dumps(report, indent=2, allow_nan=False)]
    return {name: lines for name, lines in files.items() if lines}


def _publish(folder: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Write every file under a temporary name, then rename all; older ones of ours go."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {name: folder / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        for name, lines in files.items():
            with open(written[name], "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        # The report is there only when everything that it speaks of is.
        (folder / REPORT).unlink(missing_ok=True)
        for name in _names():
            if name in written:
                os.replace(written[name], folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)


def _json(value: object) -> str:
    """One line. Dates and the like, which Parquet may hold, become text; NaN is refused."""
    return json.dumps(value, allow_nan=False, default=str)


def _spelled(value: object) -> object:
    """The same with NaN and infinity, which JSON does not have, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _spelled(item) for key, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, (list, tuple)) else value
