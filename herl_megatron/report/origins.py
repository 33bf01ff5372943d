"""What the page says of where the numbers come from: settings, code, machine, command, dates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from herl_megatron.report.html import Html, join, table, tag, text
from herl_megatron.report.runs import ReportedRun, RunGroup, changed_settings, differing_settings


def settings(groups: Sequence[RunGroup]) -> list[Html]:
    """Between groups, what differs; of each group's first run, what is not at its default."""
    parts = []
    if len(groups) > 1 and (differing := differing_settings(groups)):
        rows = [
            [tag("code", text(key)), *(_value(value) for value in values)]
            for key, values in differing.items()
        ]
        head = ("key", *(group.label for group in groups))
        parts += [tag("h3", text("Settings that differ")), table(head, rows, css="settings")]
    for group in groups:
        title = f"Settings of {group.label} that are not the defaults"
        changed = changed_settings(group.runs[0])
        rows = [
            [tag("code", text(key)), _value(value), _value(default)]
            for key, (value, default) in sorted(changed.items())
        ]
        shown = table(("key", "value", "default"), rows, css="settings")
        parts.append(_folded(title, shown, opened=len(groups) == 1))
    return parts


def origins(runs: Sequence[ReportedRun]) -> list[Html]:
    """When, where and with which code each run was started; a run without a record is named."""
    rows = [_origin(run) for run in runs if run.starts]
    if not rows:
        return []
    head = ("run", "started", "took", "outcome", "starts", "host", "devices", "commit")
    parts = [tag("h3", text("Where the runs come from")), table(head, rows, css="settings")]
    if missing := [str(run.path) for run in runs if not run.starts]:
        parts.append(tag("p", text(f"Without a record: {', '.join(missing)}."), css="note"))
    details = [tag("div", _command(run)) for run in runs if run.starts]
    parts.append(_folded("Commands and versions", join(details), opened=False))
    return parts


def _origin(run: ReportedRun) -> list[Html]:
    newest = run.starts[-1]
    began = run.starts[0].get("started")
    outcome = newest.get("outcome") or "running, or killed"
    return [
        text(run.path), text(_date(began)), text(_took(run.starts)), text(outcome),
        text(len(run.starts)), text(", ".join(_hosts(run.starts))),
        text(_devices(newest)), text(", ".join(dict.fromkeys(map(_commit, run.starts)))),
    ]  # fmt: skip


def _command(run: ReportedRun) -> Html:
    newest = run.starts[-1]
    versions = newest.get("versions") or {}
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [f"{start.get('working_directory')}$ {start.get('command')}" for start in run.starts]
    heading = tag("h4", text(run.path))
    return join([heading, tag("pre", text("\n".join(lines))), tag("p", text(shown), css="note")])


def _commit(start: Mapping[str, Any]) -> str:
    code = start.get("code") or {}
    commit = code.get("commit")
    if not commit:
        return "no checkout"
    return f"{str(commit)[:12]}{' and changes' if code.get('dirty') else ''}"


def _devices(start: Mapping[str, Any]) -> str:
    gpus: Counter[str] = Counter()
    for node in _nodes(start) or [start]:
        gpus.update(node.get("gpus") or {})
    if gpus:
        return ", ".join(f"{count} x {name}" for name, count in gpus.items())
    cpu = start.get("cpu") or {}
    return f"{cpu.get('model', 'CPU')}, {cpu.get('cores', '?')} cores"


def _hosts(starts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hosts of all starts, each once, the driver's before those of its other nodes."""
    machines = [machine for start in starts for machine in (start, *_nodes(start))]
    return list(dict.fromkeys(str(machine.get("host")) for machine in machines))


def _nodes(start: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Where a start had its processes, if that was on several nodes; earlier versions wrote none.
    The driver's own is among them."""
    return list(start.get("nodes") or ())


def _date(text_of: object) -> str:
    moment = _moment(text_of)
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M %z}"


def _took(starts: Sequence[Mapping[str, Any]]) -> str:
    """Time between begin and end, starts added up; of one that did not end nobody knows."""
    seconds, known = 0.0, True
    for start in starts:
        begun, ended = _moment(start.get("started")), _moment(start.get("ended"))
        if begun is None or ended is None:
            known = False
        else:
            seconds += (ended - begun).total_seconds()
    hours, rest = divmod(round(seconds), 3600)
    shown = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    return shown if known else f"{shown} and more" if seconds else "-"


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None


def _value(value: object) -> Html:
    return text("unset" if value is None else "''" if value == "" else value)


def _folded(title: str, content: Html, *, opened: bool) -> Html:
    inside = join([tag("summary", text(title)), content])
    return Html(f'<details class="more"{" open" if opened else ""}>{inside}</details>')
