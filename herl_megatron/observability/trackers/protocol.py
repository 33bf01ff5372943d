"""What a tracker is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from herl_megatron.types import Score, Scored, ScoredGroup

SamplesOf = Literal["step", "eval"]


@dataclass(frozen=True)
class TrackedRun:
    """The run as a tracker shows it: its folder, name, command and resolved configuration."""

    folder: Path
    name: str
    command: str
    config: Mapping[str, Any]
    """Nested by section, plain JSON values."""

    def flat_config(self) -> dict[str, str]:
        """Values by dotted key, as text."""
        return {
            f"{section}.{key}": str(value)
            for section, values in self.config.items()
            for key, value in (values.items() if isinstance(values, Mapping) else [("", values)])
        }


@dataclass(frozen=True)
class TextSample:
    """A prompt with one response, its verdicts, and its revision where there is one."""

    prompt: str
    response: str
    reward: float | None
    unmet: tuple[str, ...]
    revision: str = ""
    revision_reward: float | None = None

    def markdown(self) -> str:
        """For trackers that show text; every part is quoted as it is, in a block of its own."""
        title = f"response, reward {_number(self.reward)}"
        parts = [("prompt", self.prompt), (title, self.response)]
        if self.unmet:
            parts.append(("unmet", "\n".join(self.unmet)))
        if self.revision:
            parts.append((f"revision, reward {_number(self.revision_reward)}", self.revision))
        return "\n\n".join(f"**{title}**\n\n{_block(text)}" for title, text in parts)


class Tracker(Protocol):
    """Takes a run's numbers and texts. May raise anything: `fan_out.Trackers` stands before it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step or evaluation, by metric name; all are finite."""
        ...

    def log_samples(self, step: int, name: SamplesOf, samples: Sequence[TextSample]) -> None:
        """Texts of one training step or evaluation."""
        ...

    def close(self, *, ended_well: bool) -> None:
        """The run is over; what was told is brought to where it is kept."""
        ...


def text_sample(group: ScoredGroup) -> TextSample:
    """The first draft that was revised, with its best revision; else the first response."""
    revised = [revision.experience.rollout_index for revision in group.revisions]
    index = revised[0] if revised else 0
    score = group.scores[index]
    revisions = [r for r in group.revisions if r.experience.rollout_index == index]
    best = max(revisions, key=lambda r: _reward(r.score) or 0.0, default=None)
    return TextSample(
        prompt="\n\n".join(f"{m.role}: {m.content}" for m in group.group.prompt.messages),
        response=group.group.rollouts[index].text,
        reward=_reward(score),
        unmet=tuple(score.unmet) if isinstance(score, Scored) else (),
        revision=best.rollout.text if best else "",
        revision_reward=_reward(best.score) if best else None,
    )


def _reward(score: Score) -> float | None:
    return score.reward if isinstance(score, Scored) else None


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _block(text: str) -> str:
    """Indented, which is code in Markdown whatever the text holds."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
