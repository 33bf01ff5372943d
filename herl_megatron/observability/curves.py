"""The learning curve as a PNG: reward and all-satisfied rate over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from herl_megatron.types import StepMetrics

_PANELS = (
    ("mean reward", "reward/mean", "eval/reward", "#2f6fb0"),
    ("all criteria satisfied", "reward/all_satisfied", "eval/all_satisfied", "#2e8b57"),
)
INK, GRID = "#333333", "#dddddd"


def plot_learning_curve(history: Sequence[StepMetrics], path: Path, *, title: str) -> None:
    """Write the learning curve to `path` (PNG)."""
    draw_learning_curve(history, title=title).savefig(path)


def draw_learning_curve(history: Sequence[StepMetrics], *, title: str) -> Figure:
    """Training rollouts as lines, held-out evaluations as points, revisions as bars.

    Step k of any of them is measured with the weights after k steps. What was not logged is left
    out.
    """
    figure = Figure(figsize=(10, 4.2), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.8])
    for axes, (name, train, held_out, colour) in zip((left, middle), _PANELS, strict=True):
        _panel(axes, history, train=train, held_out=held_out, colour=colour)
        axes.set_title(name, loc="left", color=INK, fontsize=11)
    _hindsight_panel(right, history)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    return figure


def series(history: Sequence[StepMetrics], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was logged."""
    points = [(item.step, item.values[name]) for item in history if name in item.values]
    return [step for step, _ in points], [value for _, value in points]


def _panel(
    axes: Axes, history: Sequence[StepMetrics], *, train: str, held_out: str, colour: str
) -> None:
    steps, values = series(history, train)
    axes.plot(steps, values, color=colour, lw=1.8, alpha=0.75, label="training rollouts")
    eval_steps, eval_values = series(history, held_out)
    axes.plot(
        eval_steps, eval_values, "o", color=INK, ms=6, mfc="white", mew=1.6,
        label="held-out prompts", zorder=3,
    )  # fmt: skip
    if eval_values:
        for index, above in ((0, False), (-1, True)):
            _mark(axes, eval_steps[index], eval_values[index], above=above)
    style_axes(axes)
    axes.set_ylim(-0.03, max([1.03, *values, *eval_values]))
    axes.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=INK)


def _mark(axes: Axes, step: int, value: float, *, above: bool) -> None:
    """The number next to its point, inside the axes: before to the right, after to the left."""
    axes.annotate(
        f"{value:.2f}", (step, value), xytext=(-4 if above else 6, 9 if above else -13),
        textcoords="offset points", ha="right" if above else "left", color=INK, fontsize=9,
        fontweight="bold",
    )  # fmt: skip


def _hindsight_panel(axes: Axes, history: Sequence[StepMetrics]) -> None:
    steps, revisions = series(history, "hindsight/revisions")
    accepted = series(history, "hindsight/accepted")[1]
    axes.bar(steps, revisions, width=1.0, color="#e8c9a0", label="sampled")
    axes.bar(steps, accepted, width=1.0, color="#c8741a", label="joined training")
    style_axes(axes)
    axes.set_title("revisions per step", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper right", labelcolor=INK)


def style_axes(axes: Axes) -> None:
    """The look of every panel over steps: few lines, whole steps on the x axis."""
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
