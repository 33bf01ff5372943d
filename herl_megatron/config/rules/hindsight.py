"""Rules of section `hindsight`. A method says itself what is wrong between its keys, which
`prepared.method_problems` asks: methods are built on this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config, HindsightConfig
from herl_megatron.config.secrets import shown_file
from herl_megatron.files.os_errors import absent


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    hindsight = config.hindsight
    if _writes_prompts(config, purpose) and hindsight.prompt_file:
        yield from _one_prompt(config)
    if purpose != "train" or not hindsight.enabled:
        return
    yield from _stale_revisions(config)


def file_problems(config: Config, purpose: Purpose) -> Iterator[str]:
    """Why the user's revision prompt is not there; looks at the disk."""
    file = config.hindsight.prompt_file
    if _writes_prompts(config, purpose) and file and (problem := absent(file, "file")):
        yield (
            f"hindsight.prompt_file: {problem}: {shown_file(file)!r} (from {Path.cwd()}); mend the"
            " path"
        )


def _writes_prompts(config: Config, purpose: Purpose) -> bool:
    return purpose == "improve" or (purpose == "train" and config.hindsight.enabled)


def _one_prompt(config: Config) -> Iterator[str]:
    style = config.hindsight.prompt_style
    if style != HindsightConfig().prompt_style:
        yield (
            f"hindsight.prompt_file is {shown_file(config.hindsight.prompt_file)!r} with"
            f" hindsight.prompt_style {style!r}, but one prompt is written: take the file out, or"
            f" set the style back to {HindsightConfig().prompt_style!r}"
        )


def _stale_revisions(config: Config) -> Iterator[str]:
    """A revision that older weights drew must know its own log-probs."""
    mode, hindsight = config.rollout.mode, config.hindsight
    if mode == "sync":
        return
    if hindsight.reference_compat or hindsight.behavior == "old":
        key = "reference_compat true" if hindsight.reference_compat else "behavior 'old'"
        yield (
            f"rollout.mode is {mode!r} with hindsight.{key}, which takes revisions to be drawn by"
            " the step's first weights; use behavior 'sampler', or mode 'sync'"
        )
