"""Cut responses: how they go on, how their parts are put together, how they are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from herl_megatron.rollout.carry import (
    GroupProgress,
    continuation,
    dump_progress,
    join,
    load_progress,
)
from herl_megatron.rollout.staleness import staleness_metrics
from herl_megatron.types import (
    Completion,
    CriterionResult,
    FinishReason,
    GenerateRequest,
    Rollout,
    RolloutGroup,
    SamplingSettings,
    Scored,
    ScoredGroup,
    Segment,
    Unscored,
    Verdict,
)
from tests.unit.rollout.fakes import make_prompts

REQUEST = GenerateRequest(
    "a", np.array([7, 8], np.int32), SamplingSettings(0.9, 0.8, 5, max_tokens=10), seed=3
)


def _part(
    tokens: list[int], version: int, reason: FinishReason = "abort", log_prob: float = -1.0
) -> Completion:
    log_probs = np.full(len(tokens), log_prob, np.float32)
    return Completion("a", np.array(tokens, np.int32), log_probs, reason, version)


def test_the_continuation_asks_for_the_rest_only() -> None:
    rest = continuation(REQUEST, _part([1, 2, 3], 4))
    assert rest.prompt_token_ids.tolist() == [7, 8, 1, 2, 3]
    assert rest.prompt_token_ids.dtype == np.int32
    assert rest.sampling == SamplingSettings(0.9, 0.8, 5, max_tokens=7)
    assert rest.request_id == "a" and rest.priority < REQUEST.priority
    # Other random numbers than those that drew the beginning, and others after every cut.
    again = continuation(REQUEST, _part([1, 2, 3, 4], 4))
    assert len({REQUEST.seed, rest.seed, again.seed}) == 3
    assert continuation(REQUEST, _part([9, 9, 9], 1)).seed == rest.seed


def test_what_was_not_begun_is_asked_for_as_it_was() -> None:
    rest = continuation(REQUEST, _part([], 4))
    assert rest.prompt_token_ids.tolist() == [7, 8]
    assert (rest.seed, rest.sampling) == (REQUEST.seed, REQUEST.sampling)


def test_a_finished_response_has_no_continuation() -> None:
    with pytest.raises(AssertionError, match="a is finished: stop"):
        continuation(REQUEST, _part([1], 4, "stop"))


def test_joined_parts_keep_tokens_log_probs_and_versions() -> None:
    first, second = _part([1, 2], 4, log_prob=-1), _part([3], 5, log_prob=-2)
    third = _part([4, 5, 6], 7, "length", log_prob=-3)
    whole = join(join(first, second), third)
    assert whole.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert whole.log_probs.tolist() == [-1, -1, -2, -3, -3, -3]
    assert whole.log_probs.dtype == np.float32 and whole.token_ids.dtype == np.int32
    assert whole.finish_reason == "length" and whole.weight_version == 7
    assert whole.segments == (Segment(4, 2), Segment(5, 1), Segment(7, 3))
    # In which order parts are put together does not matter.
    assert join(first, join(second, third)).segments == whole.segments


def test_parts_of_one_version_are_one_segment_and_empty_parts_none() -> None:
    whole = join(_part([1], 4), _part([2], 4, "stop"))
    assert whole.segments == (Segment(4, 2),) and whole.earlier == ()
    cut_again = join(_part([1], 4), _part([], 5))
    assert cut_again.segments == (Segment(4, 1),)
    assert (cut_again.finish_reason, cut_again.weight_version) == ("abort", 4)
    begun = join(_part([], 4), _part([1], 5, "stop"))
    assert begun.segments == (Segment(5, 1),)
    assert _part([], 4).segments == ()


def test_progress_survives_json_bit_for_bit() -> None:
    log_probs = np.array([-0.1, -1e-30, -np.inf], np.float32)
    mixed = Completion("a", np.arange(3, dtype=np.int32), log_probs, "stop", 6, (Segment(5, 2),))
    results = (
        CriterionResult("c", Verdict.UNVERIFIABLE, "why", for_every_response=True),
        CriterionResult("d", Verdict.FOLLOWED),
    )
    scores = (Scored(1 / 3, results, ("d",), ()), Unscored("no judge", results[:1]))
    progress = GroupProgress(
        {"first samples": (mixed, _part([], 2)), "revisions": (_part([5], 6),)},
        {"scoring": scores},
    )
    read = load_progress(json.loads(json.dumps(dump_progress(progress), allow_nan=False)))
    assert read.scores == progress.scores
    assert read.tokens == progress.tokens == 4
    assert list(read.completions) == ["first samples", "revisions"]
    for phase, answers in progress.completions.items():
        for left, right in zip(read.completions[phase], answers, strict=True):
            assert left.token_ids.tobytes() == right.token_ids.tobytes()
            assert left.log_probs.tobytes() == right.log_probs.tobytes()
            assert left.token_ids.dtype == np.int32 and left.log_probs.dtype == np.float32
            same = replace(left, token_ids=right.token_ids, log_probs=right.log_probs)
            assert vars(same) == vars(right)


def test_staleness_is_counted_over_tokens() -> None:
    fresh, mixed = _part([1, 2, 3], 6, "stop"), join(_part([1], 4), _part([2, 3, 4, 5], 6, "stop"))
    rollouts = tuple(Rollout(i, c, "") for i, c in enumerate((fresh, mixed)))
    group = ScoredGroup(
        RolloutGroup(make_prompts(1)[0], np.array([1], np.int32), rollouts), (Unscored("x"),) * 2
    )
    assert staleness_metrics([group], 6) == {
        "rollout/staleness_mean": 2 / 8,
        "rollout/staleness_max": 2.0,
        "rollout/stale_tokens": 1.0,
        "rollout/resumed": 1.0,
    }
    assert staleness_metrics([], 6)["rollout/staleness_max"] == 0.0
