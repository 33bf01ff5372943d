"""A run that trains, with `run.resume` where nothing is left to do: its table, and nothing is
started."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import get_console

from herl_megatron.commands.results import TrainResult
from herl_megatron.config.loop_keys import LoopKeys, loop_keys
from herl_megatron.config.schema import Config
from herl_megatron.files.run_files import EXPORT_FILE
from herl_megatron.observability.summary import HELD_OUT, Headline, print_summary
from herl_megatron.run.checkpoints import Checkpoint
from herl_megatron.run.folder import RunFolder

logger = logging.getLogger(__name__)


def result_of_finished(config: Config, folder: RunFolder) -> TrainResult | None:
    """Show and return what the run came to, if it is finished; else None, and nothing is said."""
    loop = loop_keys(config, purpose="train")
    summary = finished_summary(folder.path, folder.checkpoint, loop)
    if summary is None:
        return None
    say_finished(summary)
    print_summary(summary, folder=folder.path, console=get_console())
    policy = folder.policy if config.train.export else None
    return TrainResult(folder.path, policy, *headlines(summary))


def say_finished(summary: Mapping[str, Any]) -> None:
    """In the log."""
    logger.info("all %d steps are done: nothing was left to resume", summary["steps"])


def finished_summary(
    folder: Path, checkpoint: Checkpoint | None, loop: LoopKeys
) -> dict[str, Any] | None:
    """`summary.json`, if all that `loop` asks for is in the run's folder; None otherwise.

    Not where an evaluation was changed or never made, which a resume then does, nor where the
    newest checkpoint is damaged, which it writes anew.
    """
    if checkpoint is None or checkpoint.other_evaluation or checkpoint.damaged:
        return None
    if checkpoint.driver.step != loop.steps:
        return None
    if loop.export and not (folder / "policy" / EXPORT_FILE).is_file():
        return None
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(summary, dict) or summary.get("steps") != loop.steps:
        return None
    if loop.evaluates and summary.get("measured_on") != HELD_OUT:
        return None
    return summary


def headlines(summary: Mapping[str, Any]) -> tuple[Headline | None, Headline | None]:
    """The held-out numbers before and after; None where nothing was held out or compares."""
    if summary["measured_on"] != HELD_OUT:
        return None, None
    before, after = (
        (summary["reward"][when], summary["all_satisfied"][when]) for when in ("before", "after")
    )
    return _headline(*before), _headline(*after)


def _headline(reward: float | None, all_satisfied: float | None) -> Headline | None:
    return None if reward is None or all_satisfied is None else Headline(reward, all_satisfied)
