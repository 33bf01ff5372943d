"""What every command of the command line takes, and how it says what the user can mend."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from herl_megatron.files.os_errors import explain

Settings = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE... [KEY=VALUE]...",
        help="YAML files, which merge left to right (see configs/), and overrides of single keys,"
        " such as train.steps=10",
    ),
]


def refuse(error: ValueError) -> NoReturn:
    """What the user can mend, as one message; exit code 2."""
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(2) from error


def stop(error: OSError, elsewhere: str) -> NoReturn:
    """A full disk, a folder that cannot be written and their like, as one message; exit code 1."""
    text = escape(explain(error, elsewhere=elsewhere))
    Console(stderr=True).print(f"[bold red]stopped:[/] {text}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error
