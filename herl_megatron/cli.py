"""`herl train|sft|dpo|eval|improve CONFIG [key=value ...]`, `herl score INPUT --out OUT`,
`herl report RUN ...`, `herl doctor [CONFIG]`.

What a command needs is imported by it alone: `herl score` runs without torch and starts at once.

Exit codes: 0 done, 1 a worker failed, 2 the input has to be mended, 3 saved and paused because the
judge's budget is spent, 75 stopped on request (SIGUSR1) and saved: to go on with run.resume=true,
130 interrupted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from herl_megatron.commands.configs import config_app
from herl_megatron.commands.refusals import Settings, refuse, stop
from herl_megatron.observability.logging import setup_logging
from herl_megatron.observability.node_memory import in_short

if TYPE_CHECKING:
    from herl_megatron.prepared import Command, PreparedConfig

# Imports and rows make many objects that live long: by default collections look at them all again
# every few thousand, a tenth of the CPU time of a start.
gc.set_threshold(100_000, 20, 20)

_Options = TypeVar("_Options")

_PAUSED = 3  # no scheduler should start it again before somebody has raised the cap
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_SAVED = 75  # "temporary failure" in sysexits.h: slurm/ray_cluster.sh asks for another turn

app = typer.Typer(
    help="HeRL on Megatron-Core: hindsight-guided RL from rubric rewards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _options_of(
    options: type[_Options],
) -> Callable[[Callable[[_Options], None]], Callable[..., None]]:
    """Have a command's options read from the fields of a dataclass, which it is given filled in.

    Typer reads a signature: this makes one, so that a command of many options need not have as many
    parameters.
    """

    def decorate(command: Callable[[_Options], None]) -> Callable[..., None]:
        def call(**given: Any) -> None:
            command(options(**given))

        hints = get_type_hints(options, include_extras=True)
        parameters = [
            Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)  # type: ignore[arg-type]  # a dataclass
        ]
        for name in ("__module__", "__name__", "__doc__"):
            setattr(call, name, getattr(command, name))
        call.__annotations__ = hints | {"return": None}
        setattr(call, "__signature__", Signature(parameters))  # noqa: B010
        return call

    return decorate


class _WithKeys(TyperCommand):
    """A command whose `--help` ends with every key that it reads."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As usual, then section by section."""
        super().format_help(ctx, formatter)
        from herl_megatron.config.explain import keys_for_help

        console = Console()
        for section, lines in keys_for_help(self.name or "", width=min(console.width, 100)):
            console.print(f"[bold]{escape(section)}[/]", highlight=False, soft_wrap=True)
            console.print(escape(lines), highlight=False, soft_wrap=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"herl_megatron {version('herl_megatron')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="and exit")
    ] = False,
) -> None:
    """HeRL on Megatron-Core: hindsight-guided RL from rubric rewards."""


@app.command(cls=_WithKeys)
def train(settings: Settings) -> None:
    """Train with HeRL and export the policy."""
    from herl_megatron.api import train as run

    _run(settings, command="train", function=run)


@app.command(cls=_WithKeys)
def sft(settings: Settings) -> None:
    """Fine-tune on demonstrations with the same trainer and export the policy."""
    from herl_megatron.api import sft as run

    _run(settings, command="sft", function=run)


@app.command(cls=_WithKeys)
def dpo(settings: Settings) -> None:
    """Learn from preference pairs with the same trainer and export the policy."""
    from herl_megatron.api import dpo as run

    _run(settings, command="dpo", function=run)


@app.command("eval", cls=_WithKeys)
def evaluate(settings: Settings) -> None:
    """Evaluate a Hugging Face folder on held-out prompts."""
    from herl_megatron.api import evaluate as run

    _run(settings, command="eval", function=run)


@app.command(cls=_WithKeys)
def improve(settings: Settings) -> None:
    """Revise held-out answers against the criteria they miss, and compare with best-of-N."""
    from herl_megatron.api import improve as run

    _run(settings, command="improve", function=run)


@dataclass(frozen=True)
class _Score:
    """The options of `herl score`."""

    rows: Annotated[Path, typer.Argument(metavar="INPUT", help="rows with response(s)")]
    out: Annotated[Path, typer.Option(help="verdicts, one line per row; totals beside it")]
    mode: Annotated[
        Literal["strict", "loose"], typer.Option(help="loose: IFEval's eight variants")
    ] = "strict"
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: by rows and cores")
    ] = None
    check_module: Annotated[
        list[str] | None, typer.Option(help="Python module with checks of your own")
    ] = None
    check_timeout: Annotated[
        float, typer.Option(min=0.001, help="seconds that one check may take")
    ] = 5.0
    check_memory: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="that a check of your own may take")
    ] = 4 << 30
    answer_after: Annotated[
        str, typer.Option(metavar="TEXT", help="score what follows it alone, such as </think>")
    ] = ""
    judge: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint")] = ""
    judge_model: Annotated[str, typer.Option(help="the model's name there")] = ""
    grader_prompt: Annotated[
        str, typer.Option(metavar="FILE", help="a benchmark's own prompt (docs/scoring.md)")
    ] = ""
    judge_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="any key of the judge section, listed below"),
    ] = None


@app.command(cls=_WithKeys)
@_options_of(_Score)
def score(given: _Score) -> None:
    """Score responses that are already there; started again it goes on where it was stopped."""
    from herl_megatron import api
    from herl_megatron.commands.benchmark_tables import print_scores
    from herl_megatron.commands.score.options import scoring_overrides

    setup_logging()
    progress = Console(stderr=True)
    try:
        config = api.prepare((), scoring_overrides(given), command="score")
        result = api.score(config, given.rows, given.out, mode=given.mode)
    except ValueError as error:
        refuse(error)
    except RuntimeError as error:  # JudgeError: the judge stayed away
        text = f"{error}; the same command goes on from {given.out}"
        progress.print(f"[bold red]stopped:[/] {escape(text)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except OSError as error:
        stop(error, f"name another --out than {given.out}; what is there is kept")
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        _hear_no_more()
        progress.print(f"[bold yellow]interrupted:[/] the same command goes on from {given.out}")
        raise typer.Exit(_INTERRUPTED) from error
    print_scores(result, Console())


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUNS...", help="folders, finished or not")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="default: RUN/report, or report/")] = None,
    samples: Annotated[int, typer.Option(min=0, help="sample groups per run")] = 4,
    table: Annotated[
        bool, typer.Option("--table", help="evaluations beside the paper's numbers instead")
    ] = False,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RUN", help="--table: which row of the paper a run is of"),
    ] = None,
) -> None:
    """Draw the curves of runs and write one HTML page; seeds of one setup are put together."""
    from herl_megatron.commands.reporting import make_report

    try:
        page = make_report(runs or [], out=out, samples=samples, table=table, rows=row or [])
    except ValueError as error:
        refuse(error)
    Console().print(f"report: {page}", highlight=False, soft_wrap=True)


@app.command(cls=_WithKeys)
def plan(
    settings: Settings,
    model_config: Annotated[
        Path | None, typer.Option(help="the model's config.json; default: shapes/NAME.json")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="such as h100-80 (a wrong name lists all) or NUMBER_GiB")
    ] = None,
    gpus: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with GPUs of your own, see docs/planning.md"),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="of the machines planned for")] = 8,
    host_gib: Annotated[
        float, typer.Option(min=0, max=1e6, help="host memory of a node; 0: any")
    ] = 0,
    rate: Annotated[list[str] | None, typer.Option(help="an assumption, NAME=VALUE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Say what a run will need per rank and phase, and whether it fits (else exit code 1)."""
    from herl_megatron.config.load import split_arguments
    from herl_megatron.plan.command import WantedMachines, run_plan

    try:
        files, overrides = split_arguments(settings)
        fits = run_plan(
            files,
            overrides,
            model_config=model_config,
            machines=WantedMachines(gpu, gpus, gpus_per_node, host_gib),
            rates=rate or [],
            as_json=as_json,
        )
    except ValueError as error:
        refuse(error)
    raise typer.Exit(0 if fits else 1)


@app.command(cls=_WithKeys)
def doctor(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE... [KEY=VALUE]...]", help="also check this configuration"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Say what this machine has, what a run would use and what is missing (then exit code 1)."""
    from herl_megatron.commands import doctor as look
    from herl_megatron.config.load import load_config, split_arguments

    try:
        loaded = load_config(*split_arguments(settings)) if settings else None
    except ValueError as error:
        refuse(error)
    findings = look.examine(ray_address=loaded.cluster.address if loaded else "")
    if loaded is not None:
        findings += look.check_config(loaded, purpose=look.purpose_of(loaded))
    healthy = all(finding.status != "missing" for finding in findings)
    if as_json:
        said = {"ok": healthy, "will_use": look.will_use(), "findings": list(map(vars, findings))}
        typer.echo(json.dumps(said, indent=2, allow_nan=False))
    else:
        look.print_findings(findings, Console())
    raise typer.Exit(0 if healthy else 1)


app.add_typer(config_app, name="config")

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


def _script(name: str, module: str, about: str, *, to: typer.Typer = app) -> None:
    """Add a command whose module reads its own arguments (`--help` too), imported when it runs."""

    @to.command(name, help=about, add_help_option=False, context_settings=_PASSED_ON)
    def run(context: typer.Context) -> None:
        from importlib import import_module

        raise typer.Exit(import_module(module).main(context.args))


_script("data", "herl_megatron.commands.data", "Turn a data set into rows to train on.")
_script("tasks", "herl_megatron.commands.tasks", "Write a task's rows for small real models.")
_script("pairs", "herl_megatron.commands.pairs", "Make preference pairs for DPO from rollouts.")
_script("reproduce", "herl_megatron.commands.reproduce",
        "Run a row of the paper's tables, from its data to its numbers.")  # fmt: skip
_script("inspect", "herl_megatron.commands.inspect", "Browse rollouts, verdicts and revisions.")
_script("verify", "herl_megatron.commands.verify", "Prove a conversion: hashes, tensors, logits.")
convert = typer.Typer(help="Hugging Face folders and Megatron checkpoints.", no_args_is_help=True)
app.add_typer(convert, name="convert")
_script("to-megatron", "herl_megatron.commands.to_megatron",
        "Hugging Face folder to a Megatron checkpoint of any layout.", to=convert)  # fmt: skip
_script("to-hf", "herl_megatron.commands.to_hf",
        "Megatron checkpoint of any layout to a Hugging Face folder.", to=convert)  # fmt: skip


def _run(
    settings: list[str], *, command: Command, function: Callable[[PreparedConfig], object]
) -> None:
    """Prepare and run; turn the failures a user can act on into one clear message."""
    from herl_megatron.config.load import split_arguments
    from herl_megatron.errors import PausedByBudget, SavedForResume
    from herl_megatron.prepared import prepare

    console = Console(stderr=True)
    setup_logging()
    try:
        function(prepare(*split_arguments(settings), command=command))
    except ValueError as error:
        refuse(error)
    except PausedByBudget as error:
        text = escape(str(error))
        console.print(f"[bold yellow]paused:[/] {text}", highlight=False, soft_wrap=True)
        raise typer.Exit(_PAUSED) from error
    except SavedForResume as error:
        console.print(f"[bold yellow]stopped:[/] {escape(str(error))}; run.resume=true goes on")
        raise typer.Exit(_SAVED) from error
    except (RuntimeError, TimeoutError) as error:  # WorkerError, PipelineError and their like
        text = escape(in_short(str(error)))
        console.print(f"[bold red]stopped:[/] {text}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except OSError as error:  # a full disk, a folder that cannot be written, too many open files
        stop(error, "choose another run.dir")
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        _hear_no_more()
        console.print("[bold yellow]interrupted:[/] all workers were ended")
        raise typer.Exit(_INTERRUPTED) from error


def _hear_no_more() -> None:
    """All is ended: another Ctrl-C would only spoil the message and the exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    """Entry point of the `herl` command."""
    try:
        app()
    except KeyboardInterrupt:  # a second one, between the job's end and its message
        _hear_no_more()
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
