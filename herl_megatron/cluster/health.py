"""Waiting for workers: always bounded, and a failure says who, what and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from herl_megatron.errors import RunError, policy_lost
from herl_megatron.observability.node_memory import in_short

_GRACE_S = 5.0  # how long a collective's other victims may take to report after the first failure


class WorkerError(RunError):
    """A worker died, failed or did not answer in time; the message names it."""


async def wait_for(ref: Any, *, who: str, doing: str, timeout_s: float) -> Any:
    """Result of one remote call.

    Raises `WorkerError` when the worker died or took longer than `timeout_s`, and the worker's own
    exception when its code raised one.
    """
    return (await wait_for_all([ref], who=[who], doing=doing, timeout_s=timeout_s))[0]


async def wait_for_all(
    refs: Sequence[Any], *, who: Sequence[str], doing: str, timeout_s: float
) -> list[Any]:
    """Results of calls that belong together (one per rank), in order.

    The first failure ends the wait. A rank that dies makes its peers fail in a collective, often
    sooner than the death is noticed, so a death is preferred over the errors that it caused.
    """
    tasks = [asyncio.ensure_future(_as_coroutine(ref)) for ref in refs]
    try:
        done, pending = await asyncio.wait(
            tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION
        )
        failed = any(task.exception() for task in done)
        if failed and pending:
            await asyncio.wait(pending, timeout=_GRACE_S)
    finally:  # whoever is cancelled here leaves nobody waiting for an actor that is then killed
        late = [name for name, task in zip(who, tasks, strict=True) if not task.done()]
        _cancel(tasks)
    if failed:
        _raise_first(tasks, who=who, doing=doing)
    if late:
        raise WorkerError(
            f"{', '.join(late)} did not finish {doing!r} within {timeout_s:g} s; "
            "raise the time limit of that stage if the work is really that long"
        )
    return [task.result() for task in tasks]


async def _as_coroutine(ref: Any) -> Any:
    return await ref


def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()


def _raise_first(tasks: Sequence[asyncio.Future[Any]], *, who: Sequence[str], doing: str) -> None:
    failed = [
        (name, error)
        for name, task in zip(who, tasks, strict=True)
        if task.done() and not task.cancelled() and (error := task.exception())
    ]
    for name, error in failed:
        if isinstance(error, RayActorError):
            raise WorkerError(f"{name} died during {doing!r}: {_one_line(error)}") from error
    causes = [
        (name, error, error.cause if isinstance(error, RayTaskError) else error)
        for name, error in failed
    ]
    # What one rank found out about the policy says more than its peers' broken collectives.
    name, error, cause = next((one for one in causes if policy_lost(one[2])), causes[0])
    if isinstance(cause, (ValueError, WorkerError)):
        raise cause from error
    raise WorkerError(
        f"{name} failed during {doing!r}: {type(cause).__name__}: {cause}",
        policy_lost=policy_lost(cause),
    ) from error


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    short = in_short(text)  # of Ray's hundred lines about memory, those that say who held it
    return short.splitlines()[0] if short else type(error).__name__


def kill(actors: Sequence[Any]) -> None:
    """End these actors at once; one that is already gone is fine."""
    for actor in actors:
        ray.kill(actor, no_restart=True)
