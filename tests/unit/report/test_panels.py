"""What the report draws is what runs log."""

from __future__ import annotations

from herl_megatron.report.panels import CHAPTERS
from tests.metric_names import from_code


def test_every_curve_is_of_a_metric_that_the_code_logs() -> None:
    """A renamed metric would leave its panel empty without a word."""
    drawn = {
        name
        for chapter in CHAPTERS
        for panel in chapter.panels
        for name in (panel.train, panel.held_out, panel.over)
        if name
    }
    assert len(drawn) > 60
    made_by_the_report = ("derived/", "axis/")
    logged = {name for name in drawn if not name.startswith(made_by_the_report)}
    assert logged - from_code() == set()
    judge, rates = (
        {p.train for c in CHAPTERS if c.title == title for p in c.panels}
        for title in ("Judge", "Rates, memory and queues")
    )
    assert {"judge/calls", "judge/latency_p50_s", "judge/cost", "judge/paused_s"} <= judge
    assert {"perf/mfu", "perf/tokens_per_s", "engine/kv_cache", "memory/driver_host_gib"} <= rates
