"""docs/metrics.md and the code name the same metrics; whole runs look too (e2e/conftest.py)."""

from __future__ import annotations

import re

from herl_megatron.observability.peaks import TRAINER_PHASES
from tests.metric_names import from_code, from_page, undocumented
from tests.pages import ROOT


def test_every_metric_is_on_the_page_and_in_the_code() -> None:
    code, page = from_code(), from_page()
    assert len(code) > 150
    assert code - page == set(), "logged, but not on the page"
    assert page - code == set(), "on the page, but not logged"


def test_a_runs_names_are_compared_without_their_own_parts() -> None:
    assert undocumented(["step", "reward/check/ifeval/a:b", "train/loss"]) == set()
    assert undocumented(["train/no_such_metric", "reward/check"]) == {
        "train/no_such_metric",
        "reward/check",
    }


def test_every_row_has_unit_meaning_range_and_what_to_do() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.*$", page, re.MULTILINE)
    assert [row for row in rows if row.count("|") != 6] == []


def test_metrics_that_other_pages_name_are_there() -> None:
    """In prose, as `train/entropy`."""
    known = from_page() | {name.rpartition("/")[0] + "/NAME" for name in from_page()}
    phase = re.compile(rf"/({'|'.join(re.sub('[ -]', '_', one) for one in TRAINER_PHASES)})_gib$")
    known |= {phase.sub("/PHASE_gib", name) for name in known}
    families = "|".join(sorted({name.partition("/")[0] for name in from_page()} - {"rollout"}))
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(rf"`((?:{families})/\w+(?:/\w+)?)`", text):
            assert name in known, f"{path.name} names {name}"
