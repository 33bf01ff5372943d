"""One command of a row's chain: what it is, what it makes and how one knows that it is done."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from herl_megatron.config.load import override
from herl_megatron.config.purpose import RESUMES, TRAINS, Purpose
from herl_megatron.files.run_files import EVALUATED, EXPORT_FILE, checkpoint_folders

Scale = Literal["full", "toy"]
Preset = Literal["herl", "released", "paper"]
_PLAIN = re.compile(r"[A-Za-z./][\w./-]*")
"""A value that YAML and every shell read as this very text, but for `_WORDS`."""
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "."}


@dataclass(frozen=True)
class ChainOptions:
    """What a chain is asked for.

    configs: the folder `configs/`. folder: below which the runs go. model: instead of the folder
    that `configs/models/` names; a folder or a name on the Hub. inputs: name of a data set -> the
    place of its rows, instead of `data_sets`. overrides: keys of the train stage; those of
    `judge`, `scoring` and `cluster` are the samples' too. evaluation: keys of the evaluations.
    """

    configs: Path
    folder: Path
    scale: Scale = "full"
    preset: Preset = "released"
    model: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One `herl` command.

    argv: what follows `herl`. makes: the folder or file for whoever looks. finished: files that are
    all there once it is done, the last that it writes. home: where its lock and its record are; of
    a stage that several rows share, not the row's own folder. problem: why it cannot run yet, or
    the empty string, looked at when it is asked. product: what later stages read of it, files or a
    model's folder; empty for `finished`. reads: names of the earlier stages that it is made from.
    differs: how what is there is not what is asked for, of a stage whose own files say how they
    were made; None where `row.json` says it. redone: what is there will be made again.
    """

    name: str
    argv: tuple[str, ...]
    makes: Path
    finished: tuple[Path, ...]
    home: Path
    problem: Callable[[], str] = field(default=str, compare=False)
    product: tuple[Path, ...] = ()
    reads: tuple[str, ...] = ()
    differs: Callable[[], str] | None = field(default=None, compare=False)
    redone: bool = False

    def reading(self, sources: Iterable[Stage]) -> Stage:
        """The same, made from these stages."""
        return replace(self, reads=tuple(dict.fromkeys(stage.name for stage in sources)))

    def is_done(self) -> bool:
        """Whether what it writes last is there, and stays."""
        return not self.redone and all(path.is_file() for path in self.finished)

    def is_begun(self) -> bool:
        """Whether it is done, or its command would go on from a checkpoint of an earlier start."""
        return self.is_done() or (self.argv[0] in RESUMES and bool(checkpoint_folders(self.makes)))

    @property
    def command(self) -> str:
        """As one types it."""
        return shlex.join(("herl", *self.argv))


def setting(key: str, value: str | Path) -> str:
    """`key=value` for a text: plain where that is safe, quoted as YAML where it is not."""
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return f"{key}={text}"
    return override(key, text)


def run_stage(
    name: str,
    command: Purpose,
    files: Sequence[Path],
    settings: Sequence[str],
    *,
    folder: Path,
    run: str,
    home: Path,
    problem: Callable[[], str] = str,
) -> Stage:
    """A command that runs a configuration, into `folder`/`run`.

    It goes on from its checkpoint where the command can; else an unfinished earlier start, which
    nothing can be made of, is replaced. settings: come before those of the run itself, but for
    these they are the last word.
    """
    resumes = command in RESUMES
    own = [
        setting("run.dir", folder),
        setting("run.name", run),
        f"run.resume={str(resumes).lower()}",
        f"run.overwrite={str(not resumes).lower()}",
    ]
    path = folder / run
    trained = (path / "policy" / EXPORT_FILE, path / "summary.json")
    last = trained if command in TRAINS else (path / EVALUATED,)
    product = path / "policy" if command in TRAINS else path / "rollouts/eval.jsonl"
    argv = (command, *map(str, files), *settings, *own)
    return Stage(name, argv, path, last, home, problem, (product,))
