"""`herl report`: drawn numbers, the page's numbers, nothing from elsewhere, inert model text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.lines import Line2D
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.report.figures import draw_chapter
from herl_megatron.report.panels import chapters_for
from herl_megatron.report.runs import group_runs, read_run
from herl_megatron.report.write import _time_rows, write_report
from tests.unit.report.run_folders import group, make_run, response, write_step

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


def lines(*, train: list[float], before: float, after: float) -> list[dict[str, Any]]:
    steps = [{"step": step, "reward/mean": value} for step, value in enumerate(train)]
    ends = [(0, before), (len(train), after)]
    held_out = [
        {"step": step, "eval/reward": value, "eval/all_satisfied": value / 2}
        for step, value in ends
    ]
    return [held_out[0], *steps, held_out[1]]


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "a", seed=0, lines=lines(train=[0.25, 0.5], before=0.25, after=0.5)),
        make_run(tmp_path / "b", seed=1, lines=lines(train=[0.75, 1.0], before=0.375, after=1.0)),
    ]


class Elements(HTMLParser):
    """Every element with its attributes, and all text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def xy(line: Line2D) -> np.ndarray:
    """Points of a drawn line, `[points, 2]`."""
    return np.asarray(line.get_xydata())


def test_lines_are_means_and_bands_are_ranges(seeds: list[Path]) -> None:
    groups = group_runs([read_run(path) for path in seeds])
    learning = chapters_for(groups)[0]
    assert [panel.title for panel in learning.panels] == ["mean reward", "all criteria satisfied"]
    reward = draw_chapter(learning, groups).axes[0]
    assert xy(reward.lines[0]).tolist() == [[0, 0.5], [1, 0.75]]
    band = np.asarray(reward.collections[0].get_paths()[0].vertices)
    assert {tuple(point) for point in band} >= {(0, 0.25), (0, 0.75), (1, 0.5), (1, 1.0)}
    drawn = [xy(line).tolist() for line in reward.lines]
    assert [[0, 0.3125], [2, 0.75]] in drawn  # held-out: (0.25 + 0.375) / 2, (0.5 + 1) / 2


def test_rounds_of_improvement_are_before_and_after_with_panels_of_their_own(
    tmp_path: Path,
) -> None:
    rounds = [
        {"step": step, "improve/reward": value, "improve/all_satisfied": value / 2,
         "best_of_n/reward": value - 0.125, "improve/samples": 4}
        for step, value in ((0, 0.25), (1, 0.5), (2, 0.75))
    ]  # fmt: skip
    run = make_run(tmp_path, seed=0, lines=rounds)
    (chapter,) = chapters_for(group_runs([read_run(run)]))
    assert [panel.train for panel in chapter.panels] == [
        "improve/reward", "best_of_n/reward", "improve/all_satisfied",
    ]  # fmt: skip
    text = Elements(write_report([run], out=tmp_path / "out").read_text()).text
    assert "held-out prompts, best by round, step 0 -> 2" in text
    assert "3 rounds" in text and "+0.500" in text and "not finished" not in text


def test_a_replay_is_shown_with_what_it_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=0, lines=[{"step": 0, "reward/mean": 0.5}])
    record = group("p", [response(0, ["c1"], ["c2"], text="be kind")])
    replay = {"of": 0, "prompt": f"user: Use lowercase. {EVIL}", "satisfied": ["c1"]}
    write_step(run, 0, [record | {"replays": [replay]}])
    page = Elements(write_report([run], out=tmp_path / "out").read_text())
    shown = page.text.split("replayed as a success of")[1]
    assert f"user: Use lowercase. {EVIL}" in shown.replace("\n", "")
    assert "No revision was sampled" not in page.text


def test_many_groups_show_held_out_numbers_alone_and_smoothed_lines(tmp_path: Path) -> None:
    held_out = [{"step": s, "eval/reward": s / 10, "eval/all_satisfied": 0.5} for s in (0, 8)]
    gains = [{"step": s, "reward/mean": 0.9, "hindsight/gain": float(s == 4)} for s in range(8)]
    runs = [
        make_run(tmp_path / str(arm), seed=0, lines=[*held_out, *gains], steps=8, name=f"arm{arm}",
                 alpha=arm / 10)
        for arm in range(4)
    ]  # fmt: skip
    groups = group_runs([read_run(path) for path in runs])
    learning, hindsight = chapters_for(groups)[:2]
    reward = draw_chapter(learning, groups).axes[0]
    curves = [line for line in reward.lines if len(xy(line))]
    assert [xy(line)[:, 1].tolist() for line in curves] == [[0.0, 0.8]] * 4  # no 0.9
    # A little to the sides, in order, around the steps 0 and 8.
    shifts = [float(xy(line)[0, 0]) for line in curves]
    assert shifts == sorted(shifts) and abs(shifts[3]) < 0.1
    assert sum(shifts) == pytest.approx(0) and shifts[3] > 0
    assert xy(curves[0])[1, 0] - shifts[0] == pytest.approx(8)
    gain = draw_chapter(hindsight, groups).axes[0].lines[0]
    # The 1 at step 4 is a fifth of each window of five steps around it.
    assert xy(gain)[:, 1].tolist() == pytest.approx([0, 0, 0.2, 0.2, 0.2, 0.2, 0.25, 0])


def test_times_of_many_runs_are_means_of_their_groups(tmp_path: Path) -> None:
    runs = []
    for seed in range(13):
        run = make_run(
            tmp_path / str(seed), seed=seed, lines=lines(train=[0.5], before=0.2, after=0.4)
        )
        seconds = {"train": float(seed), "other": 1.0, "total": seed + 1.0}
        (run / "summary.json").write_text(json.dumps({"seconds": seconds}))
        runs.append(read_run(run))
    few, many = group_runs(runs[:12]), group_runs(runs)
    assert [seconds["train"] for _, seconds in _time_rows(few)] == list(range(12))
    ((label, means),) = _time_rows(many)
    assert label == "herl (13 seeds)"
    assert means == {"train": 6.0, "other": 1.0, "total": 7.0}


def test_a_line_is_broken_where_numbers_are_missing_for_long(tmp_path: Path) -> None:
    gains = [{"step": step, "hindsight/gain": 0.5} for step in (0, 1, 4, 8)]
    groups = group_runs([read_run(make_run(tmp_path, seed=0, lines=gains, steps=9))])
    (line,) = draw_chapter(chapters_for(groups)[0], groups).axes[0].lines
    assert xy(line)[:, 0].tolist() == [0, 1, 4, 7.5, 8]
    assert np.isnan(xy(line)[:, 1]).tolist() == [False, False, False, True, False]
    assert line.get_marker() == "o"  # step 8 stands alone


def test_the_page_says_before_and_after(seeds: list[Path], tmp_path: Path) -> None:
    page = write_report(seeds, out=tmp_path / "out")
    shown = " ".join(Elements(page.read_text()).text.split())
    assert "0 2 of 2 held-out prompts, step 0 -> 2 0.250 0.500 +0.250 0.125 0.250 +0.125" in shown
    # reward: before (0.25 + 0.375) / 2, after (0.5 + 1) / 2, change (0.25 + 0.625) / 2
    assert (
        "mean, and range 0.312 0.250 to 0.375 0.750 0.500 to 1.000 +0.438 +0.250 to +0.625" in shown
    )
    learning = imread(tmp_path / "out/learning.png")
    assert learning.shape[1] == 1320 and np.std(learning) > 0.05


def test_only_an_earlier_report_is_replaced(seeds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    page = write_report(seeds, out=out)
    assert write_report(seeds, out=out) == page  # its own
    (picture,) = list(out.glob("headline*.png"))[:1] or list(out.glob("*.png"))[:1]
    page.unlink()
    picture.write_text("mine")
    with pytest.raises(ValueError, match=f"{picture.name} is there already and is no report"):
        write_report(seeds, out=out)
    page.write_text("<title>My report</title>")
    with pytest.raises(ValueError, match=r"report\.html is there already"):
        write_report(seeds, out=out)
    assert picture.read_text() == "mine" and "My report" in page.read_text()


def test_runs_of_other_settings_are_overlaid_and_told_apart(
    seeds: list[Path], tmp_path: Path
) -> None:
    other = make_run(
        tmp_path / "c", seed=0, name="no-bonus", alpha=0.0, steps=5,
        lines=lines(train=[0.5], before=0.25, after=0.25)[:2],
    )  # fmt: skip
    shown = " ".join(Elements(write_report([*seeds, other], out=tmp_path).read_text()).text.split())
    assert "Report: herl (2 seeds), no-bonus" in shown
    assert "hindsight.alpha 0.05 0.0" in shown
    assert "1 of 5, not finished" in shown


def test_the_page_needs_nothing_from_elsewhere(seeds: list[Path], tmp_path: Path) -> None:
    write_step(seeds[0], 0, [group("p", [response(0, ["c1"], ["c2"])])])
    page = write_report(seeds, out=tmp_path).read_text()
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PICTURE", page)
    assert "//" not in without_pictures and "url(" not in without_pictures
    elements = Elements(without_pictures).found
    sources = {attrs[key] for _, attrs in elements for key in ("src", "href") if key in attrs}
    assert sources == {"PICTURE"}
    assert {"script", "link", "iframe"}.isdisjoint({name for name, _ in elements})
    policy = [a["content"] for n, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_model_text_is_inert(tmp_path: Path) -> None:
    run = make_run(tmp_path / EVIL.replace("/", ""), seed=0, name="a<b>c",
                   lines=lines(train=[0.5], before=0.5, after=0.5))  # fmt: skip
    draft = response(0, ["c1"], ["c2"], text=EVIL)
    draft["verdicts"][1]["reason"] = EVIL
    revision = response(
        0, ["c1", "c2"], [], text=f"{EVIL} and more", parent=0, accepted=True, replaces=None
    )
    record = group(EVIL, [draft], [revision])
    record["messages"][0]["content"] = EVIL
    record["criteria"][0] |= {"check": EVIL, "description": EVIL}
    write_step(run, 0, [record])
    elements = Elements(write_report([run], out=tmp_path / "out").read_text())
    assert "script" not in {name for name, _ in elements.found}
    assert not [a for _, attrs in elements.found for a in attrs if a.startswith("on")]
    assert {(a["src"] or "")[:22] for n, a in elements.found if n == "img"} == {
        "data:image/png;base64,"
    }
    assert elements.text.count(EVIL) >= 6  # shown as written


def test_samples_show_draft_revision_and_verdicts(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=0, lines=lines(train=[0.5], before=0.5, after=0.5))
    revision = response(
        0, ["c1", "c2"], [], text="a kind text 0", parent=0, accepted=True, replaces=1
    )
    record = group("p7", [response(0, ["c1"], ["c2"], text="a text 0"), response(1, [], [])])
    write_step(run, 0, [record | {"revisions": [revision]}])
    page = write_report([run], out=tmp_path / "out").read_text()
    shown = " ".join(Elements(page).text.split())
    assert "step 0, prompt p7: rewards 0.5, none." in shown
    assert "draft, rollout 0: reward 0.5 a text 0 met Use lowercase. missed Be polite." in shown
    assert "revision: reward 1, joined training in place of rollout 1" in shown
    assert "met Be polite. (was missed)" in shown
    assert "<ins>kind </ins>" in page


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    metrics = lines(train=[0.5], before=0.5, after=0.5)
    metrics[1]["odd/$\\frac$"] = 1.0
    run = make_run(tmp_path, seed=0, name="a $\\frac$ b", lines=metrics)
    assert "a $\\frac$ b" in write_report([run]).read_text()


def test_at_the_command_line(seeds: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(seeds[0])])
    assert done.exit_code == 0, done.output
    assert (seeds[0] / "report" / "report.html").is_file()
    for arguments, said in (
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path], "is no run"),
        ([seeds[0], seeds[0]], "more than once"),
    ):
        refused = CliRunner().invoke(app, ["report", *map(str, arguments)])
        assert refused.exit_code == 2
        assert said in " ".join(refused.output.split())


def test_sft_and_evaluation_runs_have_reports_too(tmp_path: Path) -> None:
    sft = make_run(tmp_path / "s", seed=0, name="sft", lines=[{"step": 0, "sft/loss": 7.5}])
    one = make_run(tmp_path / "e", seed=0, name="eval", lines=[{"step": 0, "eval/reward": 0.5}])
    page = write_report([sft, one], out=tmp_path / "out").read_text()
    shown = " ".join(Elements(page).text.split())
    assert "1 of 100, not finished -" in shown and "evaluation held-out prompts" in shown
