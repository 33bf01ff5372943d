"""From what a stage was made: whether what is there still follows from the stages before it.

`row.json` keeps, of every stage that was begun, the fingerprints that the products of the stages
that it reads had then. Content counts, not time: data that was made again alike is no change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from herl_megatron.data.fingerprints import of_weights
from herl_megatron.reproduce.row_record import changed, read_record
from herl_megatron.reproduce.stage import Stage

POLICY = str(Path("train") / "policy")
"""In a row's folder: what it learnt."""
_RUNS = ("train", "sft", "dpo", "eval")
"""Commands whose products nobody makes again alike in a moment, as `herl data` does."""


def fingerprint_of(product: Path) -> str:
    """Of a file its content; of a model's folder names, types, shapes and a block of every tensor.

    Raises:
        ValueError: a file of the model is no safetensors.
    """
    if product.is_dir():
        return of_weights(product)
    with open(product, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_now(stage: Stage, stages: Sequence[Stage]) -> dict[str, str]:
    """The stages that it reads, each with the fingerprint of its product, all of them done."""
    prints = _Prints()
    return {one.name: prints.of(one) for one in stages if one.name in stage.reads}


def with_sources(chosen: Iterable[Stage], stages: Sequence[Stage]) -> list[Stage]:
    """These and all that they are made from, in order."""
    names = {stage.name for stage in chosen}
    for stage in reversed(stages):  # what a stage reads is before it
        if stage.name in names:
            names.update(stage.reads)
    return [stage for stage in stages if stage.name in names]


def stale_stages(stages: Sequence[Stage]) -> dict[str, str]:
    """By name, in order: stages that were begun, and why what is there does not follow from what
    they read.

    Raises:
        ValueError: a record or a model cannot be read.
    """
    found: dict[str, str] = {}
    prints = _Prints()
    for stage in stages:
        if why := _why_stale(stage, stages, found, prints):
            found[stage.name] = why
    return found


def why_stale(stage: Stage, stages: Sequence[Stage]) -> str:
    """The same of one stage, when those before it are done, or the empty string."""
    return _why_stale(stage, stages, (), _Prints())


def is_of_earlier_policy(row: Path, evaluation: str) -> bool:
    """Whether an evaluation in a row's folder has the numbers of another policy than the one that
    lies there. One that was removed, when all was measured, is no matter.

    Raises:
        ValueError: the record or the policy cannot be read.
    """
    record = read_record(row)
    then = record.read.get(evaluation, {}).get("train") if record else None
    policy = row / POLICY
    return then is not None and policy.is_dir() and fingerprint_of(policy) != then


def states(stages: Sequence[Stage]) -> dict[str, str]:
    """By name, how each stage stands, in words; empty where nothing is there.

    Raises:
        ValueError: as `stale_stages`.
    """
    stale = stale_stages(stages)
    return {stage.name: _state(stage, stale.get(stage.name, "")) for stage in stages}


def _state(stage: Stage, stale: str) -> str:
    if not stage.is_begun():
        return ""
    if stale:
        return f"stale: {stale}"
    if not stage.is_done():
        return "begun"
    other = stage.differs() if stage.differs is not None else ""
    if stage.differs is None and (record := read_record(stage.home)) is not None:
        other = changed(record, record, [stage])
    return f"there, but not as asked: {other}" if other else "done"


class _Prints:
    """Fingerprints of the stages' products, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, stage: Stage) -> str:
        """Of one that is done. A product that is gone in part is another."""
        if stage.name not in self._known:
            paths = stage.product or stage.finished
            found = [fingerprint_of(path) if path.exists() else "gone" for path in paths]
            self._known[stage.name] = " ".join(found)
        return self._known[stage.name]


def _why_stale(
    stage: Stage, stages: Sequence[Stage], stale: Collection[str], prints: _Prints
) -> str:
    if not (stage.reads and stage.is_begun()):
        return ""
    then = _recorded(stage)
    for source in stages:
        if source.name not in stage.reads:
            continue
        if source.name in stale:
            return f"made from {source.name}, which is stale"
        if not source.is_done():
            if source.argv[0] in _RUNS:
                return f"made from {source.makes}, which is not there any more"
            continue  # told when it is made again
        if source.name not in then:
            return f"nothing says from which {source.makes} it was made"
        if prints.of(source) != then[source.name]:
            return f"made from an earlier {source.makes}"
    return ""


def _recorded(stage: Stage) -> Mapping[str, str]:
    record = read_record(stage.home)
    return record.read.get(stage.name, {}) if record else {}
