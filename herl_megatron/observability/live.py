"""The live line of a terminal: a bar over the steps, and what is being done at the moment."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from herl_megatron.observability.phases import phases


class PhaseColumn(ProgressColumn):
    """The phases under way, with their seconds."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        return Text(phases.current(), style="cyan", overflow="ellipsis", no_wrap=True)


def progress_bar() -> Progress:
    """Of a loop over steps; the lines of finished steps, with their ETA, scroll above it."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        PhaseColumn(),
        expand=True,
    )
