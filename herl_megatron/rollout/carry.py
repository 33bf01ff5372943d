"""Responses that a weight sync interrupts: going on with them, and keeping them in a checkpoint.

A response that is cut keeps its tokens, the log-prob that each was drawn with and the version of
the weights that drew it. The next step sends prompt plus tokens as a new prompt; the engine reads
them anew under its new weights (its prefix cache was reset by the sync) and draws the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from herl_megatron.array_text import ArrayText
from herl_megatron.seeds import continuation_seed
from herl_megatron.types import Completion, GenerateRequest, Scored, Segment, Unscored

GeneratePhase = Literal["first samples", "revisions"]
ScorePhase = Literal["scoring", "revision scoring"]
CONTINUED_PRIORITY = -1
"""What has waited longest is served first."""

_INTS, _FLOATS, _BOOLS = ArrayText("<i4"), ArrayText("<f4"), ArrayText("?")
_SCORES: TypeAdapter[tuple[Scored | Unscored, ...]] = TypeAdapter(tuple[Scored | Unscored, ...])


@dataclass(eq=False)
class GroupProgress:
    """What is done of one group: the answers of its calls by phase, filled as they come.

    A completion with reason `abort` is a response that was cut. A pipeline that is given the group
    again takes what is here as the answers and asks only for the rest.
    """

    completions: dict[GeneratePhase, tuple[Completion, ...]] = field(default_factory=dict)
    scores: dict[ScorePhase, tuple[Scored | Unscored, ...]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens drawn so far."""
        return sum(len(c.token_ids) for answers in self.completions.values() for c in answers)


def continuation(request: GenerateRequest, part: Completion) -> GenerateRequest:
    """The request for what is missing of `request` after the cut response `part`."""
    assert part.drawn is None, "a conversation is not carried"
    assert part.finish_reason == "abort", f"{part.request_id} is finished: {part.finish_reason}"
    drawn = len(part.token_ids)
    left = request.sampling.max_tokens - drawn
    assert left > 0, f"{part.request_id} was cut after its last token"
    if not drawn:
        return replace(request, priority=CONTINUED_PRIORITY)
    return replace(
        request,
        prompt_token_ids=np.concatenate([request.prompt_token_ids, part.token_ids]),
        sampling=replace(request.sampling, max_tokens=left),
        seed=continuation_seed(request.seed, tokens=drawn),
        priority=CONTINUED_PRIORITY,
    )


def join(part: Completion, rest: Completion) -> Completion:
    """The cut response `part` and its `continuation`'s answer as one response."""
    if not len(part.token_ids):
        return rest
    if not len(rest.token_ids):
        return replace(part, finish_reason=rest.finish_reason)
    segments: list[Segment] = []
    for segment in part.segments + rest.segments:
        if segments and segments[-1].weight_version == segment.weight_version:
            segment = replace(segment, tokens=segments.pop().tokens + segment.tokens)
        segments.append(segment)
    return Completion(
        request_id=rest.request_id,
        token_ids=np.concatenate([part.token_ids, rest.token_ids]),
        log_probs=np.concatenate([part.log_probs, rest.log_probs]),
        finish_reason=rest.finish_reason,
        weight_version=rest.weight_version,
        earlier=tuple(segments[:-1]),
    )


def dump_progress(progress: GroupProgress) -> dict[str, Any]:
    """Plain JSON values, from which `load_progress` makes the same progress bit for bit."""
    return {
        "completions": {
            phase: [_dump_completion(completion) for completion in answers]
            for phase, answers in progress.completions.items()
        },
        "scores": {
            phase: _SCORES.dump_python(scores, mode="json")
            for phase, scores in progress.scores.items()
        },
    }


def load_progress(values: Mapping[str, Any]) -> GroupProgress:
    """Undo `dump_progress`."""
    return GroupProgress(
        completions={
            phase: tuple(_load_completion(answer) for answer in answers)
            for phase, answers in values["completions"].items()
        },
        scores={
            phase: _SCORES.validate_python(scores) for phase, scores in values["scores"].items()
        },
    )


def _dump_completion(completion: Completion) -> dict[str, Any]:
    return {
        "request_id": completion.request_id,
        "token_ids": _INTS.encode(completion.token_ids),
        "log_probs": _FLOATS.encode(completion.log_probs),
        "finish_reason": completion.finish_reason,
        "weight_version": completion.weight_version,
        "earlier": [[segment.weight_version, segment.tokens] for segment in completion.earlier],
    } | ({} if completion.drawn is None else {"drawn": _BOOLS.encode(completion.drawn)})


def _load_completion(values: Mapping[str, Any]) -> Completion:
    drawn = values.get("drawn")
    return Completion(
        request_id=values["request_id"],
        token_ids=_INTS.decode(values["token_ids"]),
        log_probs=_FLOATS.decode(values["log_probs"]),
        finish_reason=values["finish_reason"],
        weight_version=values["weight_version"],
        earlier=tuple(Segment(version, tokens) for version, tokens in values["earlier"]),
        drawn=None if drawn is None else _BOOLS.decode(drawn),
    )
