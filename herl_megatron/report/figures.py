"""The report's pictures: small panels over the steps, one colour per group of runs.

A line is the mean over a group's runs and its band their range; step k is measured with the
weights after k steps. A panel for which no run has numbers is left out. With many groups bands and
the noise of single steps would hide the lines: training lines are then smoothed, without a band,
and where held-out numbers exist these are drawn alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, isfinite, nan

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy import interp

from herl_megatron.observability.curves import INK, style_axes
from herl_megatron.report.panels import Chapter, Panel
from herl_megatron.report.runs import RunGroup, Series, Spread, spread

COLOURS = ("#2f6fb0", "#c8741a", "#2e8b57", "#a03c78", "#6b5bb5", "#8a6d3b", "#1b9aaa", "#777777")
_COLUMNS = 3
_WIDE, _NARROW = 12.0, 4.2
"""Inches."""
_ROUNDING = 1e-5
"""Differences below this part of the values are none: rounding, which a panel would blow up."""
_LEGEND_LETTERS = 150  # what fits beside each other
_BREAK = 3
_CROWD = 4  # groups
_SMOOTHED_STEPS = 5
_PHASE_COLOURS = (
    "#2f6fb0", "#c8741a", "#2e8b57", "#a03c78", "#6b5bb5", "#d8b365", "#7fb8d8", "#b0b0b0",
)  # fmt: skip


_Place = Callable[[Sequence[float]], list[float]]
"""Where steps stand on the x axis."""


@dataclass
class _Drawn:
    """What a legend has to explain: groups by index, and whether there are lines of training
    rollouts, held-out points, bands."""

    groups: set[int] = field(default_factory=set)
    trained: bool = False
    held_out: bool = False
    bands: bool = False


def draw_chapter(chapter: Chapter, groups: Sequence[RunGroup], *, narrow: bool = False) -> Figure:
    """The chapter's panels under one legend: three in a row, or below each other for a phone."""
    columns = 1 if narrow else min(len(chapter.panels), _COLUMNS)
    rows = ceil(len(chapter.panels) / columns)
    height = 2.7 if narrow or columns == _COLUMNS else 3.6
    width = _NARROW if narrow else _WIDE
    figure = Figure(figsize=(width, height * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    drawn = _Drawn()
    for axes, panel in zip(panes, chapter.panels, strict=False):
        _draw_panel(axes, panel, groups, drawn)
    for axes in panes[len(chapter.panels) :]:
        axes.set_axis_off()
    handles = _legend(groups, drawn)
    widest = max((len(str(handle.get_label())) + 8 for handle in handles), default=1)
    figure.legend(
        handles=handles, loc="outside upper left", frameon=False, fontsize=9, labelcolor=INK,
        ncols=min(len(handles), max(1, int(_LEGEND_LETTERS * width / _WIDE) // widest)),
    )  # fmt: skip
    return figure


def draw_time_split(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    """One bar per run: seconds by phase over the whole run (`summary.json`)."""
    totals: dict[str, float] = {}
    for _, seconds in rows:
        for phase, value in seconds.items():
            if phase != "total":
                totals[phase] = totals.get(phase, 0.0) + value
    phases = sorted((p for p in totals if p != "other"), key=lambda p: -totals[p])
    shown = [*phases[:7], "other"]
    figure = Figure(figsize=(12, 0.42 * len(rows) + 1.3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (_, seconds) in enumerate(rows):
        start = 0.0
        for phase, colour in zip(shown, _PHASE_COLOURS, strict=False):
            folded = phases[7:] if phase == "other" else []
            value = sum(seconds.get(name, 0.0) for name in (phase, *folded))
            axes.barh(row, value, left=start, color=colour, height=0.7)
            share = value / seconds["total"] if seconds["total"] else 0.0
            if share >= 0.06:
                axes.text(
                    start + value / 2, row, f"{share:.0%}", ha="center", va="center",
                    color="white", fontsize=8,
                )  # fmt: skip
            start += value
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, whole run", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [Patch(color=c, label=p) for p, c in zip(shown, _PHASE_COLOURS, strict=False)]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=8,
        labelcolor=INK,
    )  # fmt: skip
    return figure


def group_series(group: RunGroup, name: str) -> Spread | None:
    """Mean and range of one metric over the group's runs; None if a run never logged it."""
    series: list[Series] = [run.metrics[name] for run in group.runs if name in run.metrics]
    if not name or len(series) < len(group.runs):
        return None
    found = spread(series)
    return found if found.steps else None


def _draw_panel(axes: Axes, panel: Panel, groups: Sequence[RunGroup], drawn: _Drawn) -> None:
    """All groups' curves of one panel; adds to `drawn` what was drawn."""
    crowd = len(groups) >= _CROWD
    places = [_place(group, panel) for group in groups]
    measured = [group_series(group, panel.held_out) for group in groups]
    only_held_out = crowd and any(measured)
    apart = max((s.steps[-1] for s in measured if s), default=0) / 250 if crowd else 0.0
    for index, group in enumerate(groups):
        colour = COLOURS[index % len(COLOURS)]
        if (place := places[index]) is None:
            continue
        trained = None if only_held_out else group_series(group, panel.train)
        if trained is not None:
            drawn.groups.add(index)
            drawn.trained = True
            drawn.bands |= not crowd and len(group.runs) > 1
            shown = _smoothed(trained) if crowd else trained
            band = not crowd and len(group.runs) > 1
            _draw_trained(axes, shown, place, colour=colour, band=band)
        if (found := measured[index]) is not None:
            drawn.groups.add(index)
            drawn.held_out = True
            shift = apart * (index - (len(groups) - 1) / 2)
            _draw_held_out(axes, found, place, colour=colour, shift=shift, crowd=crowd)
    style_axes(axes)
    if panel.over:
        axes.set_xlabel(panel.x_label, color=INK, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_title(panel.title, loc="left", color=INK, fontsize=10)
    axes.ticklabel_format(axis="y", useOffset=False)
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
    elif panel.from_zero and axes.dataLim.ymin >= 0:
        axes.set_ylim(0, None if axes.dataLim.ymax > 0 else 1)
    else:
        _widen_flat(axes)


def _widen_flat(axes: Axes) -> None:
    """Have what is constant but for rounding look so, beside a tick that can be read."""
    low, high = axes.dataLim.ymin, axes.dataLim.ymax
    size = max(abs(low), abs(high))
    if isfinite(size) and 0 <= high - low <= _ROUNDING * size:
        middle = float(f"{(low + high) / 2:.4g}")
        axes.set_ylim(middle - 0.01 * size, middle + 0.01 * size)
        axes.set_yticks([middle], [f"{middle:.4g}"])


def _place(group: RunGroup, panel: Panel) -> _Place | None:
    """From steps to the panel's x axis; None where the group lacks what stands there."""
    if not panel.over:
        return list
    axis = group_series(group, panel.over)
    return None if axis is None else lambda steps: interp(steps, axis.steps, axis.mean).tolist()


def _draw_held_out(
    axes: Axes, found: Spread, place: _Place, *, colour: str, shift: float, crowd: bool
) -> None:
    """Points with their range; `shift` steps to the side, so that groups' ranges lie apart."""
    below = [m - low for m, low in zip(found.mean, found.low, strict=True)]
    above = [high - m for m, high in zip(found.mean, found.high, strict=True)]
    steps = place([step + shift for step in found.steps])
    axes.errorbar(
        steps, found.mean, yerr=[below, above], fmt="o", color=colour, ms=4.5, mfc="white", mew=1.4,
        ecolor=(colour, 0.4) if crowd else colour,
        elinewidth=1.0 if crowd else 1.2, capsize=0 if crowd else 2, ls="-" if crowd else ":",
        lw=1.6 if crowd else 0.9, zorder=3,
    )  # fmt: skip


def _smoothed(found: Spread) -> Spread:
    """Each step's mean over the window of steps around it, of which there are fewer at the ends."""
    reach = _SMOOTHED_STEPS // 2
    windows = [
        [m for other, m in zip(found.steps, found.mean, strict=True) if abs(other - step) <= reach]
        for step in found.steps
    ]
    means = tuple(sum(window) / len(window) for window in windows)
    return replace(found, mean=means)


def _draw_trained(axes: Axes, found: Spread, place: _Place, *, colour: str, band: bool) -> None:
    """The mean as a line with its band, broken where numbers are missing for long.

    A line across many steps without a number would look like a measurement.
    """
    steps: list[float] = []
    columns: tuple[list[float], list[float], list[float]] = ([], [], [])
    usual = min((b - a for a, b in pairwise(found.steps)), default=1)
    for index, step in enumerate(found.steps):
        if index and step - found.steps[index - 1] > _BREAK * usual:
            steps.append(step - usual / 2)
            for column in columns:
                column.append(nan)
        steps.append(step)
        for column, values in zip(columns, (found.mean, found.low, found.high), strict=True):
            column.append(values[index])
    mean, low, high = columns
    sparse = len(steps) > len(found.steps) or len(steps) < 4
    marker = "o" if sparse else ""
    at = place(steps)
    axes.plot(at, mean, color=colour, lw=1.5, alpha=0.85, marker=marker, ms=2.5)
    if band:
        axes.fill_between(at, low, high, color=colour, alpha=0.18, lw=0)


def _legend(groups: Sequence[RunGroup], drawn: _Drawn) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=COLOURS[index % len(COLOURS)], lw=2.5, label=group.label)
        for index, group in enumerate(groups)
        if index in drawn.groups
    ]
    crowd = len(groups) >= _CROWD
    if drawn.trained and (crowd or drawn.held_out):
        smoothed = f", mean of {_SMOOTHED_STEPS} steps" if crowd else ""
        handles.append(Line2D([], [], color=INK, lw=1.5, label=f"training rollouts{smoothed}"))
    if drawn.held_out:
        line = "-" if crowd else ":"
        handles.append(
            Line2D(
                [], [], color=INK, marker="o", mfc="white", ls=line, lw=0.9,
                label="held-out prompts",
            )
        )  # fmt: skip
    several = any(len(groups[index].runs) > 1 for index in drawn.groups)
    if several and drawn.bands:
        handles.append(Patch(color=INK, alpha=0.18, label="range over seeds"))
    elif several and drawn.held_out:
        handles.append(
            Line2D([], [], color=INK, marker="|", ms=10, ls="", label="range over seeds")
        )
    return handles
