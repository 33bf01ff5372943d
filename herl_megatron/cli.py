"""`herl train|sft|eval CONFIG [key=value ...]`.

Exit codes: 0 done, 1 a worker failed, 2 the input has to be mended, 130 interrupted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config
from herl_megatron.config.validate import Purpose, validate
from herl_megatron.hindsight.compat import effective
from herl_megatron.observability.logging import setup_logging

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


@app.command("eval")
def evaluate(config: _ConfigPath, overrides: _Overrides = None) -> None:
    """Evaluate a Hugging Face folder on held-out prompts."""
    from herl_megatron.evaluate import run_evaluation as run

    _run(config, overrides, purpose="eval", job=run)


def _run(
    path: Path,
    overrides: list[str] | None,
    *,
    purpose: Purpose,
    job: Callable[[Config], Coroutine[Any, Any, Any]],
) -> None:
    """Load, check and run; turn the failures a user can act on into one clear message."""
    console = Console(stderr=True)
    setup_logging()
    try:
        loaded = load_config(path, overrides or [])
        # Resolved before anything reads it, so that the saved configuration says what was run.
        hindsight = effective(loaded.hindsight, loaded.rollout)
        config = loaded.model_copy(update={"hindsight": hindsight})
        validate(config, purpose=purpose)
        asyncio.run(job(config))
    except ValueError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except (RuntimeError, TimeoutError) as error:  # WorkerError, PipelineError and their like
        console.print(
            f"[bold red]stopped:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        console.print("[bold yellow]interrupted:[/] all workers were ended")
        raise typer.Exit(130) from error


def main() -> None:
    """Entry point of the `herl` command."""
    app()


if __name__ == "__main__":
    main()
