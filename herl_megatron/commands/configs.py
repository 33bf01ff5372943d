"""`herl config`: look at configurations, and renew them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herl_megatron.commands.refusals import Settings, refuse, stop

config_app = typer.Typer(help="Look at configurations, and renew them.", no_args_is_help=True)


@config_app.command("show")
def config_show(
    settings: Settings,
    everything: Annotated[bool, typer.Option("--all", help="defaults too")] = False,
) -> None:
    """Print what files and overrides come to: the keys that differ from the defaults."""
    from herl_megatron.config.explain import show
    from herl_megatron.config.load import load_config, split_arguments

    try:
        shown = show(load_config(*split_arguments(settings)), everything=everything)
    except ValueError as error:
        refuse(error)
    typer.echo(shown, nl=False)


@config_app.command("explain")
def config_explain(key: Annotated[str, typer.Argument(help="such as hindsight.gamma")]) -> None:
    """Say what a key means, its type, default and what it decides; of a section, all its keys."""
    from herl_megatron.config.explain import explain

    try:
        typer.echo(explain(key))
    except ValueError as error:
        refuse(error)


@config_app.command("diff")
def config_diff(
    one: Annotated[str, typer.Argument(help="a file, several with commas, or a run's folder")],
    other: Annotated[str, typer.Argument(help="the same")],
) -> None:
    """Print the keys that differ, with both values; exit code 1 if any does."""
    from herl_megatron.config.explain import diff, find

    try:
        lines = diff(find(one), find(other))
    except ValueError as error:
        refuse(error)
    for line in lines:
        typer.echo(line)
    raise typer.Exit(1 if lines else 0)


@config_app.command("migrate")
def config_migrate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="of earlier versions")],
    check: Annotated[
        bool, typer.Option("--check", help="change nothing; exit code 1 if a file would change")
    ] = False,
    keep_defaults: Annotated[
        bool, typer.Option("--keep-defaults", help="write defaults that were others then")
    ] = False,
) -> None:
    """Rewrite files for the keys of today; the old text stays in FILE.before-migrate."""
    from herl_megatron.config.migrate import plan_migrations, write_migration

    try:
        plans = plan_migrations(files, keep_defaults=keep_defaults)
    except ValueError as error:
        refuse(error)
    for plan in plans:
        typer.echo(plan.diff, nl=False)
        if not plan.diff:
            typer.echo(f"{plan.path}: nothing to change")
        for note in plan.notes:
            typer.echo(f"{plan.path}: {note}")
        if plan.diff and not check:
            try:
                write_migration(plan)
            except OSError as error:
                stop(error, f"copy the file to a place of your own; {plan.path} is as it was")
            typer.echo(f"{plan.path}: rewritten; the old text is in {plan.backup}")
    raise typer.Exit(1 if check and any(plan.diff for plan in plans) else 0)
