"""`herl train|sft|dpo|eval|improve CONFIG [key=value ...]`, `herl score INPUT --out OUT`,
`herl report RUN ...`, `herl doctor [CONFIG]`.

What a command needs is imported by it alone: `herl score` runs without torch and starts at once.

Exit codes: 0 done, 1 a worker failed, 2 the input has to be mended, 75 stopped on request
(SIGUSR1) and saved: to go on with run.resume=true, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from herl_megatron.observability.logging import setup_logging

if TYPE_CHECKING:
    from herl_megatron.config.schema import Config
    from herl_megatron.config.validate import Purpose

_SAVED = 75  # "temporary failure" in sysexits.h: slurm/ray_cluster.sh asks for another turn

app = typer.Typer(
    help="HeRL on Megatron-Core: hindsight-guided RL from rubric rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_ConfigPath = Annotated[Path, typer.Argument(help="YAML file, see configs/")]
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="dotted overrides, e.g. train.steps=10 hindsight.alpha=0")
]


@app.command()
def train(config: _ConfigPath, overrides: _Overrides = None) -> None:
    """Train with HeRL and export the policy."""
    from herl_megatron.train import train as run

    _run(config, overrides, purpose="train", job=run)


@app.command()
def sft(config: _ConfigPath, overrides: _Overrides = None) -> None:
    """Fine-tune on demonstrations with the same trainer and export the policy."""
    from herl_megatron.sft import sft as run

    _run(config, overrides, purpose="sft", job=run)


@app.command()
def dpo(config: _ConfigPath, overrides: _Overrides = None) -> None:
    """Learn from preference pairs with the same trainer and export the policy."""
    from herl_megatron.dpo import dpo as run

    _run(config, overrides, purpose="dpo", job=run)


@app.command("eval")
def evaluate(config: _ConfigPath, overrides: _Overrides = None) -> None:
    """Evaluate a Hugging Face folder on held-out prompts."""
    from herl_megatron.evaluate import run_evaluation as run

    _run(config, overrides, purpose="eval", job=run)


@app.command()
def improve(config: _ConfigPath, overrides: _Overrides = None) -> None:
    """Revise held-out answers against the criteria they miss, and compare with best-of-N."""
    from herl_megatron.improve import improve as run

    _run(config, overrides, purpose="improve", job=run)


@app.command()
def score(
    rows: Annotated[Path, typer.Argument(metavar="INPUT", help="rows with response(s)")],
    out: Annotated[Path, typer.Option(help="verdicts, one line per row; totals beside it")],
    mode: Annotated[
        Literal["strict", "loose"], typer.Option(help="loose: IFEval's eight variants")
    ] = "strict",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: by rows and cores")
    ] = None,
    check_module: Annotated[
        list[str] | None, typer.Option(help="Python module with checks of your own")
    ] = None,
    check_timeout: Annotated[
        float, typer.Option(min=0.001, help="seconds that one check may take")
    ] = 5.0,
    answer_after: Annotated[
        str, typer.Option(metavar="TEXT", help="score what follows it alone, such as </think>")
    ] = "",
    judge: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint")] = "",
    judge_model: Annotated[str, typer.Option(help="the model's name there")] = "",
    judge_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="any key of the judge section, see docs/scoring.md"),
    ] = None,
) -> None:
    """Score responses that are already there; started again it goes on where it was stopped."""
    from herl_megatron.config.load import load_judge
    from herl_megatron.score.run import ScoreJob, run_score, top_reasons, totals_table

    setup_logging()
    progress = Console(stderr=True)
    named = [f"base_url={judge}", f"model={judge_model}"] if judge or judge_model else []
    try:
        asked = load_judge([*named, *(judge_set or [])])
        modules = tuple(check_module or ())
        job = ScoreJob(rows, out, mode, workers, modules, check_timeout, asked, answer_after)
        totals = run_score(job, progress)
    except ValueError as error:
        _refuse(error)
    except RuntimeError as error:  # JudgeError: the judge stayed away
        text = f"{error}; the same command goes on from {out}"
        progress.print(f"[bold red]stopped:[/] {escape(text)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except OSError as error:
        _stop_without_disk(error, f"free space or name another --out than {out}; what is there"
                           " is kept")  # fmt: skip
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        progress.print(f"[bold yellow]interrupted:[/] the same command goes on from {out}")
        raise typer.Exit(130) from error
    console = Console()
    console.print(totals_table(totals))
    for reason in top_reasons(totals, 5):
        console.print(escape(reason), highlight=False, soft_wrap=True)
    console.print(f"verdicts: {out}\ntotals: {job.summary}", highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, finished or not")],
    out: Annotated[Path | None, typer.Option(help="default: RUN/report, or report/")] = None,
    samples: Annotated[int, typer.Option(min=0, help="sample groups per run")] = 4,
) -> None:
    """Draw the curves of runs and write one HTML page; seeds of one setup are put together."""
    from herl_megatron.report.build import write_report

    try:
        page = write_report(runs, out=out, samples=samples)
    except ValueError as error:
        _refuse(error)
    Console().print(f"report: {page}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    config: _ConfigPath,
    overrides: _Overrides = None,
    model_config: Annotated[
        Path | None, typer.Option(help="the model's config.json; default: models/NAME.json")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="h100-80, h200-141, a100-80, a100-40 or NUMBER_GiB")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="of the machines planned for")] = 8,
    host_gib: Annotated[float, typer.Option(min=0, help="host memory of a node; 0: any")] = 0,
    rate: Annotated[list[str] | None, typer.Option(help="an assumption, NAME=VALUE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Say what a run will need per rank and phase, and whether it fits (else exit code 1)."""
    from herl_megatron.plan.command import run_plan

    try:
        fits = run_plan(
            config,
            overrides or [],
            model_config=model_config,
            gpu=gpu,
            gpus_per_node=gpus_per_node,
            host_gib=host_gib,
            rates=rate or [],
            as_json=as_json,
        )
    except ValueError as error:
        _refuse(error)
    raise typer.Exit(0 if fits else 1)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="also check this configuration")] = None,
    overrides: _Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Say what this machine has, what a run would use and what is missing (then exit code 1)."""
    from herl_megatron import doctor as look
    from herl_megatron.config.load import load_config

    try:
        loaded = load_config(config, overrides or []) if config else None
    except ValueError as error:
        _refuse(error)
    findings = look.examine(ray_address=loaded.cluster.address if loaded else "")
    if loaded is not None:
        findings += look.check_config(loaded, purpose=look.purpose_of(loaded))
    healthy = all(finding.status != "missing" for finding in findings)
    if as_json:
        said = {"ok": healthy, "will_use": look.will_use(), "findings": list(map(vars, findings))}
        typer.echo(json.dumps(said, indent=2))
    else:
        look.print_findings(findings, Console())
    raise typer.Exit(0 if healthy else 1)


def _refuse(error: ValueError) -> NoReturn:
    """What the user can mend, as one message; exit code 2."""
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(2) from error


def _stop_without_disk(error: OSError, fix: str) -> NoReturn:
    """A full disk or a folder that cannot be written, as one message; exit code 1."""
    where = f" ({error.filename})" if error.filename else ""
    text = escape(f"{error.strerror or error}{where}; {fix}")
    Console(stderr=True).print(f"[bold red]stopped:[/] {text}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error


def _run(
    path: Path,
    overrides: list[str] | None,
    *,
    purpose: Purpose,
    job: Callable[[Config], Coroutine[Any, Any, Any]],
) -> None:
    """Load, check and run; turn the failures a user can act on into one clear message."""
    from herl_megatron.cluster.session import check_address
    from herl_megatron.cluster.stop import SavedForResume
    from herl_megatron.config.load import load_config
    from herl_megatron.config.validate import validate
    from herl_megatron.hindsight.compat import effective

    console = Console(stderr=True)
    setup_logging()
    try:
        loaded = load_config(path, overrides or [])
        # Resolved before anything reads it, so that the saved configuration says what was run.
        hindsight = effective(loaded.hindsight, loaded.rollout)
        config = loaded.model_copy(update={"hindsight": hindsight})
        validate(config, purpose=purpose)
        check_address(config.cluster)
        asyncio.run(job(config))
    except ValueError as error:
        _refuse(error)
    except SavedForResume as error:
        console.print(f"[bold yellow]stopped:[/] {escape(str(error))}; run.resume=true goes on")
        raise typer.Exit(_SAVED) from error
    except (RuntimeError, TimeoutError) as error:  # WorkerError, PipelineError and their like
        console.print(
            f"[bold red]stopped:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error
    except OSError as error:  # a full disk, a folder that cannot be written
        _stop_without_disk(error, "free space or choose another run.dir")
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        console.print("[bold yellow]interrupted:[/] all workers were ended")
        raise typer.Exit(130) from error


def main() -> None:
    """Entry point of the `herl` command."""
    app()


if __name__ == "__main__":
    main()
