"""A format is one object: a new one is judged by what is in it, and nothing else knows formats."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from herl_megatron.config.schema import Config
from herl_megatron.hindsight.revision_prompts import check_prompts
from herl_megatron.plan.judge import plan_judge
from herl_megatron.plan.machines import Assumptions
from herl_megatron.rubrics.aggregations import RULES, AggregationRule, Counted
from herl_megatron.rubrics.judge import formats
from herl_megatron.rubrics.judge.formats import BenchmarkGrader, Grading, JudgeFormat
from herl_megatron.rubrics.judge.grader_prompt import read_grader_prompt
from herl_megatron.rubrics.judge.questions import Style, make_question
from herl_megatron.rubrics.judge.units import split_units
from herl_megatron.rubrics.rubric import score_response, validate_rubric
from herl_megatron.rubrics.scorer import require_judge
from herl_megatron.types import Aggregation, Criterion, Message, Prompt, Rubric, Scored, Verdict
from tests.fake_judge import fake_judge, schema_of
from tests.unit.rubrics.client_cases import contains, judge_all, make_prompt, settings
from tests.unit.rubrics.grader_cases import grader
from tests.unit.rubrics.grader_cases import settings as grader_settings

ROOT = Path(__file__).parents[4]
STARS = cast(Aggregation, "stars")


def give_stars(criteria: Sequence[Criterion]) -> str:
    return f"Give one to three stars for: {'; '.join(c.description for c in criteria)}"


FORMAT = JudgeFormat(
    "stars",
    grading=Grading(top=3, satisfied_from=2, task=give_stars),
    takes_negative=False,
    template="{response}\n{statements}",
    grader=BenchmarkGrader(
        "wish", shown=lambda criterion: criterion.description.upper(), read=lambda t: t.count("*")
    ),
)


def mean(counted: Counted) -> float:
    return sum(result.grade or 0.0 for _, result in counted) / len(counted)


@pytest.fixture(autouse=True)
def _an_aggregation_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        cast(dict[Aggregation, AggregationRule], RULES), STARS, AggregationRule(mean, FORMAT)
    )


def stars_prompt(*criteria: Criterion) -> Prompt:
    return make_prompt(criteria or (contains("river"), contains("stone")), STARS)


def test_a_new_format_is_judged_by_what_is_in_its_object() -> None:
    asked = stars_prompt()
    with fake_judge() as server:  # a star for each word
        (low, high), stats = judge_all(settings(server), ["river", "a b c d"], asked)
        request = server.requests[0]
    assert stats["calls"] == 2 and stats["unjudged"] == 0
    user = request["messages"][1]["content"]
    assert user.startswith("===== begin response ")  # its own template
    task = 'stars for: The response contains the word "river".; The response contains the word'
    assert task in user and '"grade": a whole number from 1 to 3.' in user
    assert schema_of(request)["properties"]["grade"]["enum"] == [1, 2, 3]
    assert [r.grade for r in low] == [1 / 3] * 2 and [r.grade for r in high] == [1.0] * 2
    assert {r.verdict for r in low} == {Verdict.NOT_FOLLOWED}
    score = score_response(asked.rubric, low)
    assert isinstance(score, Scored)
    assert (score.reward, score.satisfied, score.unmet) == (1 / 3, (), ("river", "stone"))


def test_its_rules_about_rubrics_are_kept() -> None:
    negative = Criterion("n", "judge", description="Harms.", polarity="negative")
    rule = Criterion("r", "rule", check="ifeval/punctuation:no_comma")
    for wrong, said in ((negative, "polarity is negative"), (rule, "is one grade by a judge")):
        with pytest.raises(ValueError, match=said):
            validate_rubric(Rubric((wrong,), STARS))
    with pytest.raises(ValueError, match="one grade for the whole"):
        check_prompts([stars_prompt()], "criteria")


def test_it_brings_its_benchmarks_grader_along(tmp_path: Path) -> None:
    with grader("well: **") as server:
        config = grader_settings(server, tmp_path / "g.txt", "<<wish>>? <<response>>")
        asked = stars_prompt(contains("river"))
        assert require_judge(config, [asked])
        (results,), _ = judge_all(config, ["A lake."], asked)
        (sent,) = server.requests
        other = make_prompt([contains("river")])
        with pytest.raises(ValueError, match="writingbench, llmeval_med and stars, not 'explicit'"):
            require_judge(config, [other])
    assert sent["messages"][0]["content"] == ('THE RESPONSE CONTAINS THE WORD "RIVER".? A lake.')
    assert results[0].grade == pytest.approx(2 / 3)
    assert results[0].verdict is Verdict.FOLLOWED


def test_the_plan_counts_its_calls(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    criteria = [{"id": str(i), "kind": "judge", "description": "x"} for i in range(3)]
    row = {"id": "a", "messages": [], "rubric": {"aggregation": "stars", "criteria": criteria}}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = Config.model_validate(
        {"judge": {"base_url": "http://x/v1", "model": "m"}, "data": {"train": str(rows)},
         "hindsight": {"enabled": False}}
    )  # fmt: skip
    plan = plan_judge(config, Assumptions())
    assert plan is not None
    assert plan.step.calls == config.train.prompts_per_step * config.rollout.group_size


def known() -> dict[str, JudgeFormat]:
    """Every format that there is, by its name in the module."""
    return {name: value for name, value in vars(formats).items() if isinstance(value, JudgeFormat)}


@pytest.mark.parametrize("name", known())
def test_requests_are_as_many_as_are_counted(name: str) -> None:
    form = known()[name]
    criteria = [contains(word) for word in ("a", "b", "c")]
    assert len(form.split(criteria)) == form.calls(len(criteria))
    assert [c for asked in form.split(criteria) for c in asked] == criteria
    assert form.calls(0) == 0


def test_names_differ_for_they_are_part_of_the_caches_keys() -> None:
    names = [form.name for form in known().values()]
    assert len(set(names)) == len(names) == 5


def test_the_documentation_has_every_placeholder_of_a_graders_prompt() -> None:
    page = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    shown = [form.grader.placeholder for form in known().values() if form.grader is not None]
    assert len(shown) == 3 and all(f"<<{name}>>" in page for name in shown)


def test_no_other_file_tells_formats_apart() -> None:
    """An aggregation names the format whose answers it counts, and the judge's probe has one."""
    users = set()
    for path in (ROOT / "herl_megatron").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == formats.__name__:
                named = {alias.name for alias in node.names} & known().keys()
                users |= {path.name for _ in named}
    assert users == {"aggregations.py", "client.py"}


def test_a_prompt_in_the_words_of_nobody_is_a_bug_of_the_caller() -> None:
    """`require_judge` refuses such rows before anybody asks."""
    turns = (Message("user", "Write."),)
    asked = Prompt("p", turns, Rubric((contains("river"),), "implicit"))
    (unit,) = split_units(asked, "x", asked.rubric.criteria)
    with pytest.raises(AssertionError, match="no benchmark asks in the format implicit"):
        make_question(unit, [0], attempt=0, style=Style(grader=read_grader_prompt("<<response>>")))
