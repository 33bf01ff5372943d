"""What a judge has cost, over all starts of a run, and how far it may go.

A cap (`judge.max_calls`, `judge.max_cost`) ends `herl eval`, `improve` and `score` before the first
call beyond it; calls that are under way then are still paid. A training run never ends within a
step, whose work would be lost: it is paused between steps, where it can be saved. What was spent is
kept in a file beside the run's own, so that neither a resume nor a kill forgets it: that money is
gone, whatever became of the step that it was spent on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.failures import JudgeError

_WRITE_EVERY_S = 1.0


class BudgetSpent(JudgeError):
    """A cap of the judge's section is reached."""


@dataclass(frozen=True)
class Spent:
    """Requests sent, tokens of their answers, and what those cost by the prices of the time."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Budget:
    """What is spent, and the caps.

    file: where it is kept; None keeps it in memory alone.
    stops: whether a call beyond a cap is refused; without, who uses it asks `pause`.

    Raises:
        ValueError: the file is there and cannot be read.
    """

    def __init__(
        self, config: JudgeConfig, *, file: Path | None = None, stops: bool = True
    ) -> None:
        self._config = config
        self._file = file
        self._stops = stops
        self._spent = _read(file) if file is not None and file.exists() else Spent()
        self._written, self._written_at = self._spent, monotonic()
        self._mark: Spent | None = None
        self._dearest = Spent()
        self.refused = False
        """Whether a call was refused."""

    @property
    def spent(self) -> Spent:
        """Since the run's first start."""
        return self._spent

    def call(self) -> None:
        """One more request is sent.

        Raises:
            BudgetSpent: a cap is reached and calls beyond it are refused.
        """
        if self._stops and (reached := self.reached()):
            self.refused = True
            raise BudgetSpent(f"{reached}; {self._go_on()}")
        self._spent = replace(self._spent, calls=self._spent.calls + 1)

    def spend(self, tokens: tuple[int, int]) -> None:
        """Tokens in and out of one call."""
        price_in, price_out = self._config.price_in, self._config.price_out
        self._spent = replace(
            self._spent,
            tokens_in=self._spent.tokens_in + tokens[0],
            tokens_out=self._spent.tokens_out + tokens[1],
            cost=self._spent.cost + (tokens[0] * price_in + tokens[1] * price_out) / 1e6,
        )
        if monotonic() - self._written_at >= _WRITE_EVERY_S:
            self.save()

    def reached(self) -> str:
        """Which cap is reached and what is spent; empty for none."""
        for key, limit, spent in self._caps(self._spent):
            if limit and spent >= limit:
                return f"{key} {limit:g} is reached: {self._said()}"
        return ""

    def require_room(self) -> None:
        """Before anything starts.

        Raises:
            ValueError: a cap was reached by an earlier start.
        """
        if reached := self.reached():
            raise ValueError(f"{reached}; {self._go_on()}")

    def pause(self) -> str:
        """Asked after every step: why a run must not take another, empty if it may.

        A cap is reached, or what is left of it is less than the dearest step so far has taken, with
        the evaluation that followed it. The first step is not compared: the evaluation before it is
        in its sum.
        """
        now = self._spent
        if self._mark is not None:
            calls, cost = now.calls - self._mark.calls, now.cost - self._mark.cost
            before = self._dearest
            self._dearest = Spent(calls=max(calls, before.calls), cost=max(cost, before.cost))
        self._mark = now
        if reached := self.reached():
            return f"{reached}; {self._go_on(resumes=True)}"
        steps = self._caps(self._dearest)
        for (key, limit, spent), (_, _, step) in zip(self._caps(now), steps, strict=True):
            if limit and spent + step > limit:
                return (
                    f"{key} {limit:g} is not enough for one more step, which took up to {step:g}:"
                    f" {self._said()}; {self._go_on(resumes=True)}"
                )
        return ""

    def save(self) -> None:
        """Write what is spent; the file appears whole or not at all."""
        self._written_at = monotonic()
        if self._file is None or self._spent == self._written:
            return
        temporary = self._file.with_name(f"{self._file.name}.tmp")
        text = json.dumps(asdict(self._spent), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self._file)
        self._written = self._spent

    def _caps(self, spent: Spent) -> Iterator[tuple[str, float, float]]:
        yield "judge.max_calls", self._config.max_calls, spent.calls
        yield "judge.max_cost", self._config.max_cost, spent.cost

    def _said(self) -> str:
        where = f" (kept in {self._file})" if self._file is not None else ""
        return f"{self._spent.calls} calls at a cost of {self._spent.cost:g} so far{where}"

    def _go_on(self, *, resumes: bool = False) -> str:
        if resumes:
            return "raise the cap and go on with run.resume=true"
        kept = "; what is judged is in judge.cache and is not paid again"
        return f"raise the cap and start again{kept if self._config.cache else ''}"


def _read(file: Path) -> Spent:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        spent = Spent(**found)
        numbers = list(asdict(spent).values())
        if not all(type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in numbers):
            raise ValueError("it holds something else than counts")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as what the judge has cost so far ({error}); mend it, or remove"
            " it to count from 0"
        ) from error
    return spent
