"""Wall time by what is in flight."""

from __future__ import annotations

from herl_megatron.rollout.pipeline_stats import PipelineStats, WorkClock


def test_overlapping_calls_count_once_and_hidden_scoring_is_not_exposed() -> None:
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 11.0])
    clock = WorkClock(lambda: next(times))  # 0
    with clock.working("generation"):  # from 1
        with clock.working("generation"):  # from 2
            with clock.working("scoring"):  # from 3 to 4, behind generation
                pass
            # until 6
        # until 10
    clock.add_tokens("rollout", 30)
    clock.add_tokens("rollout", 2)
    clock.add_tokens("revision", 5)
    assert clock.stats(groups=2) == PipelineStats(
        groups=2,
        wall_s=11.0,
        generation_s=9.0,
        scoring_s=1.0,
        scoring_exposed_s=0.0,
        rollout_tokens=32,
        revision_tokens=5,
    )


def test_scoring_alone_is_exposed() -> None:
    times = iter([0.0, 1.0, 4.0, 5.0])
    clock = WorkClock(lambda: next(times))
    with clock.working("scoring"):
        pass
    stats = clock.stats(groups=1)
    assert (stats.scoring_s, stats.scoring_exposed_s, stats.generation_s) == (3.0, 3.0, 0.0)
    assert stats.metrics()["time/scoring_exposed_s"] == 3.0
