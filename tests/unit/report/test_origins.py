"""What the report says beside curves: settings, provenance, other axes; and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herl_megatron.report.derived import with_derived
from herl_megatron.report.figures import draw_chapter
from herl_megatron.report.panels import chapters_for
from herl_megatron.report.rollouts import CriterionNames, read_rollout_stats
from herl_megatron.report.runs import RunGroup, changed_settings, group_runs, read_run
from herl_megatron.report.write import write_report
from herl_megatron.run.provenance import record_end, record_start
from tests.unit.report.run_folders import make_run
from tests.unit.report.test_report import Elements, lines

EVIL = "<script>alert(1)</script>"


def shown(page: Path) -> str:
    return " ".join(Elements(page.read_text()).text.split())


def start(**changed: Any) -> dict[str, Any]:
    return {
        "started": "2026-11-30T10:00:00+00:00", "ended": "2026-11-30T11:30:00+00:00",
        "outcome": "finished", "command": f"herl train a.yaml {EVIL}",
        "working_directory": "/w", "host": "node7", "gpus": {"H100": 8},
        "cpu": {"model": "Xeon", "cores": 4}, "versions": {"torch": "2.13.0"},
        "code": {"commit": "0123456789abcdef", "dirty": True},
    } | changed  # fmt: skip


def test_a_single_run_shows_what_is_not_the_default(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=3, alpha=0.25, lines=lines(train=[0.5], before=0.5, after=0.5))
    changed = changed_settings(read_run(run))
    assert changed["hindsight.alpha"] == (0.25, 0.05)
    assert changed["run.seed"] == (3, 0)
    assert "hindsight.gamma" not in changed and "hindsight.threshold" not in changed
    text = shown(write_report([run], out=tmp_path / "out"))
    assert "Settings of herl that are not the defaults key value default" in text
    assert "hindsight.alpha 0.25 0.05" in text and "Settings that differ" not in text


def test_where_a_run_comes_from(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=0, lines=lines(train=[0.5], before=0.5, after=0.5))
    assert "Where the runs come from" not in shown(write_report([run], out=tmp_path / "out"))
    first = start(
        ended="2026-11-30T10:00:30+00:00", outcome="interrupted", host="node6",
        code={"commit": None, "dirty": None},
    )  # fmt: skip
    (run / "provenance.json").write_text(json.dumps({"starts": [first, start()]}))
    page = write_report([run], out=tmp_path / "out")
    text = shown(page)
    # 30 s of the first start and 1 h 30 min of the second
    assert (
        "2026-11-30 10:00 +0000 1 h 30 min finished 2 node6, node7 8 x H100 no checkout,"
        " 0123456789ab and changes" in text
    )
    assert f"/w$ herl train a.yaml {EVIL}" in text and "torch 2.13.0" in text
    assert "script" not in {name for name, _ in Elements(page.read_text()).found}


def test_hosts_and_devices_of_several_nodes(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=0, lines=lines(train=[0.5], before=0.5, after=0.5))
    nodes = [{"host": "node7", "gpus": {"H100": 8}}, {"host": "node8", "gpus": {"H100": 8}}]
    record = {"starts": [start(gpus={}, nodes=nodes)]}
    (run / "provenance.json").write_text(json.dumps(record))
    assert "finished 1 node7, node8 16 x H100 0123" in shown(
        write_report([run], out=tmp_path / "out")
    )


def test_a_killed_start_and_a_record_of_this_machine(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=0, lines=lines(train=[0.5], before=0.5, after=0.5))
    (run / "provenance.json").write_text(
        json.dumps({"starts": [start(ended=None, outcome=None, gpus={})]})
    )
    assert "- running, or killed 1 node7 Xeon, 4 cores" in shown(
        write_report([run], out=tmp_path / "out")
    )
    record_start(run, gpus={})  # what this version writes can be read
    record_end(run, "finished")
    assert "finished 2 node7" in shown(write_report([run], out=tmp_path / "out"))


def steps(
    *, seconds: list[float], tokens: list[float], reward: list[float]
) -> list[dict[str, Any]]:
    return [
        {"step": i, "time/total_s": s, "rollout/tokens": t, "rollout/revision_tokens": 1.0,
         "reward/mean": r}
        for i, (s, t, r) in enumerate(zip(seconds, tokens, reward, strict=True))
    ]  # fmt: skip


def derived(folders: list[Path]) -> list[RunGroup]:
    runs = [read_run(folder) for folder in folders]
    return group_runs([with_derived(r, read_rollout_stats(r, CriterionNames.of(r))) for r in runs])


def test_reward_over_time_and_tokens(tmp_path: Path) -> None:
    """Seeds take 1 and 2 h, then 3 and 2 h: their means are 1.5 and 4 h."""
    one = steps(seconds=[3600, 10800], tokens=[99, 199], reward=[0.25, 0.5])
    two = steps(seconds=[7200, 7200], tokens=[199, 299], reward=[0.75, 1.0])
    held_out = [{"step": 0, "eval/reward": 0.125}, {"step": 2, "eval/reward": 0.5}]
    groups = derived(
        [
            make_run(tmp_path / "a", seed=0, lines=[held_out[0], *one, held_out[1]]),
            make_run(tmp_path / "b", seed=1, lines=[held_out[0], *two, held_out[1]]),
        ]
    )
    assert groups[0].runs[0].steps == 2  # an axis is no step
    learning = chapters_for(groups)[0]
    titles = [panel.title for panel in learning.panels]
    time, tokens = (titles.index(f"mean reward over {x}") for x in ("time", "sampled tokens"))
    axes = draw_chapter(learning, groups).axes
    curves = [np.asarray(line.get_xydata()).tolist() for line in axes[time].lines]
    assert [[0.0, 0.5], [1.5, 0.75]] in curves
    assert [[0.0, 0.125], [4.0, 0.5]] in curves
    assert axes[time].get_xlabel() == "hours in steps"
    curves = [np.asarray(line.get_xydata()).tolist() for line in axes[tokens].lines]
    assert [[0.0, 0.5], [150.0, 0.75]] in curves  # (100 + 200) / 2


def test_a_run_without_times_has_steps_alone(tmp_path: Path) -> None:
    groups = derived([make_run(tmp_path, seed=0, lines=lines(train=[0.5], before=0.5, after=1.0))])
    titles = [panel.title for panel in chapters_for(groups)[0].panels]
    assert titles == ["mean reward", "all criteria satisfied"]


def test_what_is_zero_throughout_is_named_and_not_drawn(tmp_path: Path) -> None:
    logged = [
        {"step": i, "reward/mean": 0.0, "hindsight/experiences": float(i), "hindsight/replays": 0.0,
         "more/zero": 0.0}
        for i in range(3)
    ]  # fmt: skip
    learning, hindsight = chapters_for(
        group_runs([read_run(make_run(tmp_path, seed=0, lines=logged))])
    )
    assert [panel.title for panel in learning.panels] == ["mean reward"]  # a zero that says a lot
    assert [panel.train for panel in hindsight.panels] == ["hindsight/experiences"]
    assert hindsight.note.endswith(" 0 throughout: failed responses replayed.")


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.99999994, 1.0, 0.99999994], ["1"]),
        ([0.25, 0.25, 0.25], ["0.25"]),
        ([0.9, 1.0, 1.1], None),
    ],
)
def test_rounding_is_not_blown_up(
    tmp_path: Path, values: list[float], ticks: list[str] | None
) -> None:
    logged = [{"step": i, "train/ratio_mean": value} for i, value in enumerate(values)]
    groups = group_runs([read_run(make_run(tmp_path, seed=0, lines=logged))])
    axes = draw_chapter(chapters_for(groups)[0], groups).axes[0]
    found = [label.get_text() for label in axes.get_yticklabels()]
    assert found == ticks if ticks else len(found) > 2


def test_a_phone_gets_the_panels_below_each_other(tmp_path: Path) -> None:
    logged = steps(seconds=[1.0] * 3, tokens=[9.0] * 3, reward=[0.25, 0.5, 0.75])
    run = make_run(tmp_path, seed=0, lines=logged)
    groups = derived([run])
    learning = chapters_for(groups)[0]
    wide, narrow = (draw_chapter(learning, groups, narrow=n) for n in (False, True))
    assert len(learning.panels) == 3
    for figure in (wide, narrow):
        figure.canvas.draw()
    rows = {round(axes.get_position().y0, 2) for axes in wide.axes}
    assert len(rows) == 1
    assert len({round(axes.get_position().y0, 2) for axes in narrow.axes}) == 3
    assert narrow.get_size_inches()[0] == 4.2
    found = Elements(write_report([run], out=tmp_path / "out").read_text()).found
    sources = [attrs for name, attrs in found if name == "source"]
    assert sources and all(attrs["media"] == "(max-width: 700px)" for attrs in sources)
