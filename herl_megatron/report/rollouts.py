"""Rollout files read back: verdicts by check, what revisions mended, and samples to look at."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from herl_megatron.report.records import Record, read_records
from herl_megatron.report.runs import ReportedRun

_WORD = r"\S+\s*|\s+"
_MIN_SIMILARITY = 0.3
WordChange = tuple[Literal["same", "removed", "added"], str]


@dataclass
class Tally:
    """How often something held, out of how many."""

    hits: int = 0
    total: int = 0

    def add(self, hit: bool) -> None:
        """Count one more."""
        self.hits += hit
        self.total += 1


@dataclass
class RolloutStats:
    """What a run's training rollouts say, check by check.

    satisfied: check name -> step -> responses that satisfy it, of the scored ones.
    mended: check name -> revisions that satisfy it, of those whose draft did not.
    revised_steps: steps whose file holds a group with a revision.
    """

    satisfied: dict[str, dict[int, Tally]] = field(default_factory=dict)
    mended: dict[str, Tally] = field(default_factory=dict)
    revised_steps: list[int] = field(default_factory=list)


class CriterionNames:
    """Check names and texts of criteria by id.

    A run from before rollout files had them looks into the rows that it trained on, if those are
    still there (JSON lines); else a criterion is called by its id.
    """

    def __init__(self, rows: Sequence[str]) -> None:
        self._rows = rows
        self._by_prompt: dict[str, Sequence[Mapping[str, Any]]] | None = None

    @classmethod
    def of(cls, run: ReportedRun) -> Self:
        """Names for a run's rollouts, with the rows that it was given."""
        files: list[str] = []
        for key in ("data.train", "data.eval"):
            value = run.settings.get(key) or ""
            files += [value] if isinstance(value, str) else value
        return cls(files)

    def check(self, record: Record) -> dict[str, str]:
        """Criterion id -> name of its check, `judge` for a statement: its id is only its row's."""
        return {c["id"]: c.get("check") or "judge" for c in self._criteria(record)}

    def text(self, record: Record) -> dict[str, str]:
        """Criterion id -> what it demands, for people."""
        return {
            c["id"]: c.get("description") or c.get("check") or c["id"]
            for c in self._criteria(record)
        }

    def _criteria(self, record: Record) -> Sequence[Mapping[str, Any]]:
        if "criteria" in record:
            own: Sequence[Mapping[str, Any]] = record["criteria"]
            return own
        if self._by_prompt is None:
            self._by_prompt = dict(_rubrics(self._rows))
        return self._by_prompt.get(record["prompt_id"], ())


def read_rollout_stats(run: ReportedRun, names: CriterionNames) -> RolloutStats:
    """Read all of a run's training rollouts once, a group at a time."""
    stats = RolloutStats()
    for step, path in run.rollout_files():
        revised = False
        for record in read_records(path):
            revised = revised or bool(record.get("revisions"))
            _count(stats, step, record, names.check(record))
        if revised:
            stats.revised_steps.append(step)
    return stats


def sample_records(
    run: ReportedRun, stats: RolloutStats, *, count: int
) -> list[tuple[int, Record]]:
    """The first group with a revision in each of `count` steps spread evenly over the run.

    Nothing is chosen by its outcome. A run without revisions gives the first group of each.
    """
    wanted = stats.revised_steps or [step for step, _ in run.rollout_files()]
    last = len(wanted) - 1
    spread = {wanted[round(i * last / max(count - 1, 1))] for i in range(count)} if wanted else ()
    chosen = []
    for step, path in run.rollout_files():
        if step not in spread:
            continue
        for record in read_records(path):
            if record.get("revisions") or not stats.revised_steps:
                chosen.append((step, record))
                break
    return chosen


def changes(draft: str, revision: str) -> list[WordChange]:
    """What became of the draft, word by word, in the order of the revision.

    A revision that shares little with its draft comes back as one piece, all `same`: marks on
    nearly every word would hide the text.
    """
    old, new = re.findall(_WORD, draft), re.findall(_WORD, revision)
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    if matcher.ratio() < _MIN_SIMILARITY:
        return [("same", revision)]
    found: list[WordChange] = []
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            found.append(("same", "".join(new[k:m])))
            continue
        if j > i:
            found.append(("removed", "".join(old[i:j])))
        if m > k:
            found.append(("added", "".join(new[k:m])))
    return found


def _count(stats: RolloutStats, step: int, record: Record, check: Mapping[str, str]) -> None:
    rollouts = record["rollouts"]
    for rollout in rollouts:
        for key, hit in (("satisfied", True), ("unmet", False)):
            for criterion in rollout[key]:
                by_step = stats.satisfied.setdefault(check.get(criterion, criterion), {})
                by_step.setdefault(step, Tally()).add(hit)
    for revision in record.get("revisions", ()):
        judged = {*revision["satisfied"], *revision["unmet"]}
        for criterion in rollouts[revision["parent"]]["unmet"]:
            if criterion in judged:
                name = check.get(criterion, criterion)
                stats.mended.setdefault(name, Tally()).add(criterion in revision["satisfied"])


def _rubrics(files: Sequence[str]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    for name in files:
        if not name.endswith(".jsonl") or not Path(name).is_file():
            continue
        with Path(name).open(encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    yield row["id"], row["rubric"]["criteria"]
                except (ValueError, RecursionError, KeyError, TypeError):
                    continue  # not the rows of this run any more: its criteria keep their ids
