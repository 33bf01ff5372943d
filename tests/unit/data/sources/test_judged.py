"""Sets that a judge scores: what the rubric becomes, and rewards of it worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.data.sources.common import Options, RejectedRow, SourceRow
from herl_megatron.data.sources.llmeval_med import add_earlier_turns
from herl_megatron.data.sources.polarity import Reading, read_polarity
from herl_megatron.rubrics.judge.formats import BANDS, CHECKLIST, POINTS
from herl_megatron.rubrics.rubric import judge_format
from herl_megatron.types import Criterion, Message
from tests.unit.data.sources.source_cases import convert, reward


@pytest.mark.parametrize(
    ("statement", "reading"),
    [
        ("Does not mention the dose.", "met_is_bad"),
        ("The response doesn't explicitly address kidney function", "met_is_bad"),
        ("Fails to name the organism.", "met_is_bad"),
        ("The answer omits follow-up.", "met_is_bad"),
        ("Incorrectly states that the drug is safe.", "met_is_bad"),
        ("Overlooks the drug interaction.", "met_is_bad"),
        ("Misidentifies the bone.", "met_is_bad"),
        ("Recommends surgery at once.", "met_is_bad"),
        ("Overemphasizes rare causes.", "met_is_bad"),
        ("Avoids confusing mass with weight.", "met_is_good"),
        ("The response should avoid jargon.", "met_is_good"),
        ("It must not assume an ideal gas.", "met_is_good"),
        ("The response should not ignore friction.", "met_is_good"),
        ("Does not confuse heat with temperature.", "met_is_good"),
        ("Doesn't overlook the sign.", "met_is_good"),
        ("Do not skip the units.", "met_is_good"),
        ("Never recommend aspirin here.", "met_is_good"),
        ("Never dismiss chest pain.", "met_is_good"),
        ("The response never mentions the contraindication.", "met_is_bad"),
        ("Never mentions the need for follow-up.", "met_is_bad"),
        ("It never addresses the allergy.", "met_is_bad"),
        ("Responses do not mention the dose.", "met_is_bad"),
        ("Never assumes an ideal gas.", "met_is_good"),
        ("Never recommends surgery.", "unclear"),
        ("The response refrains from speculation.", "met_is_good"),
        ("Does not recommend surgery.", "unclear"),
        ("Should mention the dose.", "unclear"),
        ("The dose.", "unclear"),
        ("Not mentioning the interaction.", "met_is_bad"),
        ("Never raises the alarm symptoms.", "unclear"),
        ("Does not address the warning signs.", "met_is_bad"),
    ],
)
def test_polarity_of_a_pitfall_is_read_from_its_wording(statement: str, reading: Reading) -> None:
    assert read_polarity(statement) == reading


# The object is the fault, so that leaving it out is right, or it may be.
OF_A_FAULT = [
    "Does not describe superfluous anatomy.",
    "The response does not cite outdated guidelines.",
    "Does not give a cause other than ischemia.",
    "Does not detail steps beyond what was asked.",
    "Does not stress rarer findings over the main one.",
    "Does not state that the vaccine is a risk.",
    "Does not support bed rest.",
    "Never mentions home remedies that are unproven.",
    "It doesn't list more than one diagnosis.",
    "Does not address only the fever.",
    "Does not include jargon.",
    "Does not offer false reassurance.",
    "Does not explain irrelevant physiology.",
    "Omits needless detail.",
    "Ignores the distracting findings.",
    "Lacks speculation.",
    "Does not omit redundant tests.",
    "Not listing unlikely causes.",
    # An avoidance of something right.
    "Avoids mentioning the side effects.",
    "Refrains from discussing the prognosis.",
    "Avoids the question.",
    "Avoids a clear recommendation.",
    "Warns against vaccination.",
    "Provides an accurate dose.",
]


@pytest.mark.parametrize("statement", OF_A_FAULT)
def test_unclear_beats_a_guess_about_what_a_pitfall_means(statement: str) -> None:
    assert read_polarity(statement) == "unclear"


def rar(*items: tuple[str, int]) -> dict[str, Any]:
    return {
        "question": "How?",
        "reference_answer": "So.",
        "question_source": "exam",
        "rubric": [{"title": "T", "description": text, "weight": n} for text, n in items],
        "rubric_list": ["..."],
        "rubric_count": len(items),
    }


RAR = rar(
    ("Essential Criteria: Names the drug.", 5),
    ("Important Criteria: Gives the dose.", 3),
    ("Pitfall Criteria: Does not mention kidneys.", -2),
    ("Pitfall Criteria: Avoids jargon.", -1),
    ("Pitfall Criteria: Does not recommend rest.", -1),
)


def test_rar_categories_polarity_and_reward() -> None:
    converted = convert("rar_medicine", RAR)
    prompt = converted.prompt
    assert [(c.id, c.description, c.weight, c.polarity) for c in prompt.rubric.criteria] == [
        ("c1", "Names the drug.", 5, "positive"),
        ("c2", "Gives the dose.", 3, "positive"),
        ("c3", "Does not mention kidneys.", 2, "negative"),
        ("c4", "Avoids jargon.", 1, "positive"),
    ]
    assert prompt.rubric.criteria[0].params == {"category": "Essential", "title": "T"}
    assert prompt.reference_answer == "So." and prompt.source == "rar_medicine/exam"
    assert prompt.extra == {}
    assert converted.notes == (
        "pitfall worded as a failure (met is bad)",
        "pitfall worded as its avoidance (met is good)",
        "pitfall, unclear wording: leave out",
    )
    # Essential 1.0, important 0.7, pitfalls 0.9 each: the drug, no jargon, but kidneys forgotten.
    assert reward(prompt, {"c1", "c3", "c4"}) == pytest.approx((1.0 + 0.9) / 3.5)
    assert reward(prompt, {"c1", "c2", "c4"}) == 1.0


def test_rar_unclear_pitfalls_can_be_kept_and_reference_counts_by_sign() -> None:
    kept = convert("rar_medicine", RAR, Options(unclear="negative")).prompt
    assert kept.rubric.criteria[-1].polarity == "negative"
    prompt = convert("rar_science", RAR, Options(aggregation="herl_reference")).prompt
    assert [c.polarity for c in prompt.rubric.criteria] == ["positive"] * 2 + ["negative"] * 3
    assert prompt.id.startswith("rar_science-")
    # The released code clamps negative weights to 0: 5 of 5 + 3.
    assert reward(prompt, {"c1", "c3", "c4", "c5"}) == pytest.approx(5 / 8)


def test_rar_malformed_categories() -> None:
    row = rar(
        ("Esssential Criteria: A.", 5),
        ("B.", 4),
        ("C.", 1),
        ("Fails to D.", -1),
        ("Optional Criteria: E.", 0),
    )
    converted = convert("rar_medicine", row)
    assert [(c.description, c.params["category"]) for c in converted.prompt.rubric.criteria] == [
        ("A.", "Essential"),
        ("B.", "Important"),
        ("C.", "Optional"),
        ("Fails to D.", "Pitfall"),
    ]
    assert converted.notes.count("no category: taken from the weight") == 3
    assert "category misspelt: the nearest taken" in converted.notes
    assert "weight 0: left out" in converted.notes


HEALTHBENCH: dict[str, Any] = {
    "prompt_id": "h1",
    "prompt": [
        {"role": "user", "content": "I ache."},
        {"role": "assistant", "content": "Where?"},
        {"role": "user", "content": "Here."},
    ],
    "rubrics": [
        {"criterion": "Asks how long.", "points": 7, "tags": ["axis:completeness"]},
        {"criterion": "Names a dose.", "points": -4, "tags": []},
        {"criterion": "Is calm.", "points": 3},
        {"criterion": "Nothing.", "points": 0},
    ],
    "ideal_completions_data": {"ideal_completion": "For how long?"},
}


def test_healthbench_points_and_reward() -> None:
    converted = convert("healthbench", HEALTHBENCH)
    prompt = converted.prompt
    assert prompt.id == "healthbench-h1" and len(prompt.messages) == 3
    assert prompt.messages[1] == Message("assistant", "Where?")
    assert prompt.reference_answer == "For how long?"
    assert prompt.extra["tags"] == {"c1": ["axis:completeness"]}
    assert converted.notes == ("statement worth 0 points: left out",)
    assert judge_format(prompt.rubric) is POINTS
    assert reward(prompt, {"c1", "c2"}) == pytest.approx((7 - 4) / 10)
    assert reward(prompt, {"c2"}) == pytest.approx(-4 / 10)


def test_healthbench_in_the_trainers_form_and_bad_rows() -> None:
    inner = {"rubrics": HEALTHBENCH["rubrics"], "style": "rubric"}
    nested = {"prompt": "I ache.", "reward_model": inner, "extra_info": {"reward_model": inner}}
    prompt = convert("healthbench", nested).prompt
    assert set(prompt.extra) == {"tags"}  # the rubric is not kept twice more
    assert prompt.rubric == convert("healthbench", HEALTHBENCH).prompt.rubric
    assert prompt.id == convert("healthbench", nested | {"prompt": " i  ACHE."}).prompt.id
    for points in (None, "many", float("nan"), True):
        bad = HEALTHBENCH | {"rubrics": [{"criterion": "x", "points": points}]}
        with pytest.raises(RejectedRow, match="points is"):
            convert("healthbench", bad)
    with pytest.raises(RejectedRow, match="not a list"):
        convert("healthbench", {"prompt": "I ache."})


def test_writingbench_bands() -> None:
    bands = {"1-2": "bad", "3-4": "poor", "5-6": "fair", "7-8": "good", "9-10": "superb"}
    row = {
        "index": 12,
        "query": "Write a letter.",
        "domain1": "Letters",
        "checklist": [{"name": "Tone", "criteria_description": "Is warm.", **bands}],
    }
    prompt = convert("writingbench", row).prompt
    assert prompt.id == "writingbench-12" and prompt.extra == {"domain1": "Letters"}
    assert prompt.rubric.criteria == (
        Criterion("c1", "judge", params={"bands": bands, "title": "Tone"}, description="Is warm."),
    )
    assert judge_format(prompt.rubric) is BANDS
    del row["checklist"][0]["7-8"]  # type: ignore[index]
    with pytest.raises(RejectedRow, match="no text for 7-8"):
        convert("writingbench", row)


def med(code: int, turn: int, problem: str) -> dict[str, Any]:
    return {
        "category1": "Knowledge",
        "scene": "s",
        "round": turn,
        "problem": problem,
        "groupCode": code,
        "sanswer": f"{problem} answered",
        "checklist": "Core: 1. Says so.",
    }


def test_llmeval_med_checklist_reference_and_earlier_rounds() -> None:
    fields = [med(5, 1, "Why?"), med(5, 2, "And then?"), med(6, 2, "Alone?"), med(5, 3, "At last?")]
    rows = add_earlier_turns([SourceRow(n, f) for n, f in enumerate(fields, start=1)])
    first = convert("llmeval_med", dict(rows[0].fields)).prompt
    assert first.id.startswith("llmeval_med-") and first.messages == (Message("user", "Why?"),)
    assert first.reference_answer == "Why? answered"
    assert first.rubric.criteria == (
        Criterion(
            "checklist",
            "judge",
            params={"category": "Knowledge"},
            description="Core: 1. Says so.",
        ),
    )
    assert judge_format(first.rubric) is CHECKLIST
    assert first.extra == {"scene": "s", "category1": "Knowledge", "groupCode": 5, "round": 1}
    last = convert("llmeval_med", dict(rows[3].fields))
    assert last.prompt.messages == (
        Message("user", "Why?"),
        Message("assistant", "Why? answered"),
        Message("user", "And then?"),
        Message("assistant", "And then? answered"),
        Message("user", "At last?"),
    )
    assert len(last.notes) == 1
    with pytest.raises(RejectedRow, match="round 2 of a conversation, alone"):
        convert("llmeval_med", dict(rows[2].fields))


def test_llmeval_med_without_checklist_or_reference() -> None:
    """The published file has both, or one, and NaN for the other."""
    missing = float("nan")
    row = med(5, 1, "Why?") | {"difficulty": missing}
    alone = convert("llmeval_med", row | {"checklist": missing})
    (criterion,) = alone.prompt.rubric.criteria
    assert "reference answer" in criterion.description
    assert alone.notes == ("no checklist: graded against the reference alone",)
    assert "difficulty" not in alone.prompt.extra
    listed = convert("llmeval_med", row | {"sanswer": None})
    assert listed.prompt.reference_answer is None
    assert listed.notes == ("no reference answer: graded by the checklist alone",)
    with pytest.raises(RejectedRow, match="neither a checklist nor a reference"):
        convert("llmeval_med", row | {"checklist": " ", "sanswer": missing})


def test_plain_rows() -> None:
    row = {
        "question": "How?",
        "answer": "So.",
        "level": 3,
        "criteria": [
            "Is kind.",
            {"criterion": "Is rude.", "points": -2},
            {"check": "ifeval/punctuation:no_comma", "id": "comma"},
        ],
    }
    prompt = convert("plain", row).prompt
    assert prompt.rubric.criteria == (
        Criterion("c1", "judge", description="Is kind."),
        Criterion("c2", "judge", description="Is rude.", weight=2, polarity="negative"),
        Criterion("comma", "rule", "ifeval/punctuation:no_comma"),
    )
    assert prompt.reference_answer == "So." and prompt.extra == {"level": 3}
    canonical = {
        "id": "a",
        "messages": [{"role": "user", "content": "How?"}],
        "rubric": {"aggregation": "all_or_nothing", "criteria": row["criteria"]},
        "extra": {"level": 3},
    }
    again = convert("plain", canonical).prompt
    assert again.id == "a" and again.rubric.criteria == prompt.rubric.criteria
    assert again.rubric.aggregation == "all_or_nothing" and again.extra == {"level": 3}
    with pytest.raises(RejectedRow, match="none of rubric, rubrics, criteria"):
        convert("plain", {"prompt": "How?"})
