"""The report as one HTML page: styles and pictures inside, no scripts, nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from herl_megatron.report.html import Html, join, table, tag, text
from herl_megatron.report.memory import memory
from herl_megatron.report.origins import origins, settings
from herl_megatron.report.rollouts import Tally
from herl_megatron.report.runs import ReportedRun, RunGroup
from herl_megatron.report.tables import CheckLine, Pair, before_after

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 1240px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px } h2 { margin: 40px 0 4px; border-bottom: 1px solid #ddd }
h3 { margin: 20px 0 4px } h4 { margin: 0 0 4px; font-size: 14px }
p.note { color: #666; margin: 4px 0 }
img { max-width: 100%; display: block } .scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums }
table { font-size: 14px }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid #eee;
  vertical-align: top; white-space: nowrap }
th { color: #666; font-weight: 600; white-space: normal }
td:first-child, th:first-child { text-align: left }
table.group td:last-child, table.group th:last-child, table.settings td, table.settings th {
  text-align: left;
  white-space: pre-wrap; overflow-wrap: anywhere }
.range { color: #666; font-size: 12px } .up { color: #1a7f37 } .down { color: #b42318 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f7f8; padding: 8px 10px;
  margin: 2px 0 6px; border-radius: 4px; font: 13px/1.45 ui-monospace, monospace }
details.sample { border: 1px solid #ddd; border-radius: 6px; padding: 8px 12px; margin: 8px 0 }
details.more { margin: 8px 0 }
summary { cursor: pointer } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 16px;
  margin: 10px 0 } .pair > div { min-width: 0 } @media (max-width: 800px) { .pair {
  grid-template-columns: 1fr } }
ul.verdicts { list-style: none; padding: 0; margin: 0; font-size: 13.5px }
.mark { display: inline-block; min-width: 74px; text-align: center; border-radius: 3px;
  font-size: 12px; margin: 1px 6px 1px 0; padding: 0 4px }
.ok { background: #d7f0dd; color: #14532d }
.bad { background: #fbdcd8; color: #7f1d1d } .na { background: #e8e8e8; color: #444 }
ins { background: #d7f0dd; text-decoration: none } del { background: #fbdcd8; color: #7f1d1d }
"""
# Even if escaping were wrong somewhere, a script would not run and nothing would be fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TITLE = "HeRL report:"


@dataclass(frozen=True)
class Picture:
    """Curves as PNG. narrow: the same for a phone, where one picture will not do for both."""

    name: str
    title: str
    note: str
    png: bytes
    narrow: bytes = b""


def is_report(page: str) -> bool:
    """Whether a page was made by `document`."""
    return f"<title>{_TITLE} " in page


def build_page(
    groups: Sequence[RunGroup],
    *,
    pictures: Sequence[Picture],
    checks: Sequence[tuple[str, Sequence[CheckLine]]],
    samples: Sequence[tuple[str, Sequence[Html]]],
) -> str:
    """The whole document.

    checks: lines by group; samples: markup by run.
    """
    runs = [run for group in groups for run in group.runs]
    title = ", ".join(group.label for group in groups)
    body = [
        tag("h1", text(f"Report: {title}")),
        tag("p", text(_intro(groups)), css="note"),
        tag("h2", text("Before and after")),
        _before_after(groups),
        *settings(groups),
        *origins(runs),
        *memory(runs),
        *(_picture(picture) for picture in pictures),
        *_checks(checks),
        *_samples(samples),
    ]
    return document(f"{len(runs)} runs", body)


def document(title: str, body: Sequence[Html]) -> str:
    """A whole page of herl's, which `is_report` knows again. title: of the window."""
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width">'),
        tag("title", text(f"{_TITLE} {title}")),
        tag("style", Html(_CSS)),
    ]
    page = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _intro(groups: Sequence[RunGroup]) -> str:
    parts = ["Step k is measured with the weights after k steps."]
    if any(len(group.runs) > 1 for group in groups):
        parts.append(
            "Runs that differ in their seed alone are one group: the line is their mean, the band"
            " or bar the range from the lowest to the highest, at steps where every seed has a"
            " number."
        )
    return " ".join(parts)


def _before_after(groups: Sequence[RunGroup]) -> Html:
    rows: list[list[Html]] = []
    for group in groups:
        found = []
        for run in group.runs:
            ends = before_after(run)
            found.append(ends)
            cells = [text(run.path), text(run.seed), text(_progress(run))]
            if ends is None:
                rows.append([*cells, *[text("-")] * 7])
                continue
            steps = f"{ends.measured_on}, step {ends.first_step} -> {ends.last_step}"
            rows.append([*cells, text(steps), *_ends(ends.reward), *_ends(ends.all_satisfied)])
        known = [ends for ends in found if ends is not None]
        same = {(e.measured_on, e.first_step, e.last_step) for e in known}
        if len(known) > 1 and len(known) == len(group.runs) and len(same) == 1:
            label = join(
                [tag("b", text(group.label)), tag("div", text("mean, and range"), css="range")]
            )
            numbers = (*_mean([e.reward for e in known]), *_mean([e.all_satisfied for e in known]))
            rows.append([label, text(""), text(""), text(""), *numbers])
    head = (
        "run", "seed", "steps", "measured on", "mean reward: before", "after", "change",
        "all satisfied: before", "after", "change",
    )  # fmt: skip
    return table(head, rows)


def _ends(pair: Pair | None) -> list[Html]:
    if pair is None:
        return [text("-")] * 3
    before, after = pair
    return [text(f"{before:.3f}"), text(f"{after:.3f}"), _change(after - before)]


def _mean(pairs: Sequence[Pair | None]) -> list[Html]:
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return [text("-")] * 3
    columns = ([p[0] for p in known], [p[1] for p in known], [p[1] - p[0] for p in known])
    shown = []
    for index, values in enumerate(columns):
        mean, sign = sum(values) / len(values), "+" if index == 2 else ""
        spread = f"{min(values):{sign}.3f} to {max(values):{sign}.3f}"
        number = _change(mean) if index == 2 else text(f"{mean:.3f}")
        shown.append(join([tag("b", number), tag("div", text(spread), css="range")]))
    return shown


def _change(value: float) -> Html:
    css = "up" if value > 0 else "down" if value < 0 else ""
    return tag("span", text(f"{value:+.3f}"), css=css)


def _progress(run: ReportedRun) -> str:
    if run.kind == "eval":
        return "evaluation"
    if run.kind == "improve":
        return f"{run.planned_steps} rounds"
    done = f"{run.steps} of {run.planned_steps}"
    return done if run.steps >= run.planned_steps else f"{done}, not finished"


def _picture(picture: Picture) -> Html:
    image = Html(f'<img alt="{text(picture.title)}" src="{_data(picture.png)}">')
    if picture.narrow:
        source = Html(f'<source media="(max-width: 700px)" srcset="{_data(picture.narrow)}">')
        image = tag("picture", source, image)
    return join([tag("h2", text(picture.title)), tag("p", text(picture.note), css="note"), image])


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _checks(checks: Sequence[tuple[str, Sequence[CheckLine]]]) -> list[Html]:
    shown = [(label, lines) for label, lines in checks if lines]
    if not shown:
        return []
    note = (
        "Before and after on held-out prompts, the mean over the group's runs. Drafts: training"
        " rollouts that satisfy it, over all steps. Mended: revisions that satisfy it, of those"
        " whose draft did not."
    )
    parts = [tag("h2", text("Check by check")), tag("p", text(note), css="note")]
    for label, lines in shown:
        rows = [
            [
                text(line.name), _share(line.before), _share(line.after), _tally(line.drafts),
                _tally(line.mended),
            ]
            for line in lines
        ]  # fmt: skip
        head = ("check", "before", "after", "drafts", "mended")
        parts += [tag("h3", text(label)), table(head, rows)]
    return parts


def _share(value: float | None) -> Html:
    return text("-" if value is None else f"{value:.3f}")


def _tally(tally: Tally) -> Html:
    if not tally.total:
        return text("-")
    return text(f"{tally.hits / tally.total:.3f} ({tally.hits} of {tally.total})")


def _samples(samples: Sequence[tuple[str, Sequence[Html]]]) -> list[Html]:
    shown = [(label, parts) for label, parts in samples if parts]
    if not shown:
        return []
    note = (
        "The first group with a revision in steps spread evenly over the run; nothing is chosen by"
        " its outcome. In a revision, what is new is green and what is gone from the draft is"
        " red; one that shares little with its draft is left unmarked."
    )
    out = [tag("h2", text("Sample rollouts")), tag("p", text(note), css="note")]
    for label, parts in shown:
        out += [tag("h3", text(label)), *parts]
    return out
