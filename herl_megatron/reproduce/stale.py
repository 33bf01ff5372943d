"""What becomes of a stage that does not follow any more from the stages before it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from herl_megatron.config.paths import aside
from herl_megatron.reproduce.lineage import stale_stages, why_stale, with_sources
from herl_megatron.reproduce.stage import Stage
from herl_megatron.run.lock import RunLock

_ASIDE = re.compile(r".+\.before-[1-9][0-9]*")
_BESIDE = (".references.jsonl", ".scores.jsonl")
"""Behind the name of a file of rows: what `herl data` scored for it, and would go on with."""


def is_standing(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether a stage is done, as it is asked for and from what is there now.

    Raises:
        ValueError: its rows were prepared in another way.
    """
    if not stage.is_done():
        return False
    if stage.differs is not None and (other := stage.differs()):
        raise ValueError(other)
    return not why_stale(stage, stages)


def require_fresh(
    stages: Sequence[Stage], chosen: Sequence[Stage], *, redo: bool
) -> dict[str, str]:
    """Look at the stages that are to run and all that they are made from, before anything starts.
    Returns those of `chosen` that are stale, with why.

    Raises:
        ValueError: rows were prepared in another way than is asked for, or stages are stale and
            are not to be made again.
    """
    concerned = with_sources(chosen, stages)
    others = [s.differs() for s in concerned if s.differs is not None and s.is_done()]
    if said := list(filter(None, others)):
        raise ValueError("\n  - ".join(["nothing was started:", *said]))
    stale = stale_stages(concerned)
    names = {stage.name for stage in chosen}
    if before := {name: why for name, why in stale.items() if name not in names}:
        raise ValueError(f"{_listed(before)}\nLeave --only away, to have them made again first")
    require_redo(stale, redo=redo)
    return stale


def require_redo(stale: Mapping[str, str], *, redo: bool) -> None:
    """Raise ValueError if there are any, unless they are to be made again."""
    if stale and not redo:
        raise ValueError(
            f"{_listed(stale)}\nPut back what they were made from, give another --dir, or make them"
            " again with --redo: what is there is moved to NAME.before-1, nothing is removed"
        )


def _listed(stale: Mapping[str, str]) -> str:
    lines = [f"{name}: {why}" for name, why in stale.items()]
    return "\n  - ".join(["stages that do not follow from what is before them:", *lines])


def move_aside(stage: Stage) -> Path:
    """Give what a stage made the first free name `NAME.before-N`, and return that.

    Raises:
        ValueError: a process is writing there.
    """
    target = aside(stage.makes)
    lock = RunLock.take(stage.makes) if stage.makes.is_dir() else None
    try:
        os.rename(stage.makes, target)
    finally:
        if lock is not None:
            lock.release()
    for name in _BESIDE:
        if os.path.lexists(other := stage.makes.with_name(f"{stage.makes.name}{name}")):
            os.rename(other, aside(other))
    return target


def is_aside(path: Path) -> bool:
    """Whether it has the name of what was moved aside."""
    return bool(_ASIDE.fullmatch(path.name))
