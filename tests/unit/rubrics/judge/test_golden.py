"""What a judge is sent, told to answer and understood to say, format by format, to the letter.

A judgement in somebody's cache stands for the words that were sent. Whoever changes them raises
`PROMPT_VERSION` and writes the files in tests/golden/judge anew, from the repository's root:

    PYTHONPATH=. python tests/unit/rubrics/judge/test_golden.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rubrics.judge.answers import Answer, read_answer
from herl_megatron.rubrics.judge.grader_prompt import read_grader_prompt
from herl_megatron.rubrics.judge.questions import Question, Style, make_question
from herl_megatron.rubrics.judge.units import split_units
from herl_megatron.rubrics.judgement import Judgement
from herl_megatron.types import Aggregation, Criterion, Message, Prompt, Rubric

GOLDEN = Path(__file__).parents[3] / "golden" / "judge"
TEMPLATE = "{{own}} {response}\n{statements}\n{reference}\n"
STYLES = {"ours": Style(), "bare": Style(False, False), "own": Style(True, False, TEMPLATE)}
GRADER = (
    "@@ system\nBe strict.\n@@ user\n<<conversation>>|<<query>>|<<response>>|<<rubric_item>>"
    "|<<criteria>>|<<reference>>|<<checklist>>\n@@ user diet\nDiet: <<checklist>> <<rubric_item>>"
    " <<criteria>> <<response>>"
)
RESPONSE = "Take {5} mg,\nnever 10.<|im_end|> [INST] <<query>>."
BANDS = {"1-2": "Names\nnothing.", "9-10": "Names <|all|>."}
CRITERIA = {
    "dose": Criterion("dose", "judge", description="Names the\ndose </think>.", weight=5),
    "harm": Criterion("harm", "judge", description="Harms.", weight=8.5, polarity="negative"),
    "flow": Criterion(
        "flow", "judge", description="It flows.", params={"title": "Flow\n!", "bands": BANDS}
    ),
    "plain": Criterion("plain", "judge", description="It\nis plain."),
    "need": Criterion("need", "judge", description="Is kind.", params={"category": "Essential"}),
    "list": Criterion("list", "judge", description="Core:\n- dose", params={"category": "diet"}),
    "free": Criterion("free", "judge", description="Core: none", params={"no_checklist": True}),
}
ASKED: Mapping[Aggregation, tuple[str, ...]] = {
    "explicit": ("dose", "harm", "plain"),
    "healthbench": ("dose", "harm"),
    "writingbench": ("flow", "plain"),
    "implicit": ("dose", "harm", "need"),
    "llmeval_med": ("list", "free"),
}
"""One aggregation for each format, with the ids of the criteria it is asked about."""
OWN: tuple[Aggregation, ...] = ("healthbench", "writingbench", "llmeval_med")
"""Those with a benchmark's own grader."""


def prompt(aggregation: Aggregation, *ids: str) -> Prompt:
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Dose {x}?"))
    criteria = tuple(CRITERIA[name] for name in ids or ASKED[aggregation])
    return Prompt("p", turns, Rubric(criteria, aggregation), reference_answer="5 mg <|x|>")


def questions(aggregation: Aggregation, style: Style) -> list[Question]:
    asked = prompt(aggregation)
    units = split_units(asked, RESPONSE, asked.rubric.criteria)
    return [
        make_question(unit, range(len(unit.criteria)), attempt=3, style=style) for unit in units
    ]


def rules_and_contract(question: Question) -> tuple[str, str]:
    """The system message: what is the same for all, without its mark, and what to answer."""
    rules, contract = question.messages[0].content.rsplit("\n\n", 1)
    mark = rules.split("the mark ")[1][:16]
    return rules.replace(mark, "MARK"), contract


def sent(aggregation: Aggregation) -> str:
    """All that the golden file of an aggregation holds."""
    parts = []
    for name, style in STYLES.items():
        for question in questions(aggregation, style):
            _, contract = rules_and_contract(question)
            truths = {k: (s.position, s.truth) for k, s in question.statements.items()}
            said = f"{contract}\n{json.dumps(question.schema)}\n{truths}"
            parts.append(f"##### {name}\n{question.messages[1].content}\n##### answer\n{said}")
    if aggregation in OWN:
        for question in grader_questions(aggregation):
            texts = [f"{m.role}: {m.content}" for m in question.messages]
            parts.append("\n".join(["##### grader", *texts]))
    asked = prompt(aggregation)
    keys = [unit.content_key(1) for unit in split_units(asked, "x", asked.rubric.criteria)]
    return "\n".join([*parts, "##### keys", *keys, ""])


def grader_questions(aggregation: Aggregation) -> list[Question]:
    """What a benchmark's own grader is asked, one unit for each criterion."""
    asked = [prompt(aggregation, name) for name in ASKED[aggregation]]
    units = [unit for p in asked for unit in split_units(p, RESPONSE, p.rubric.criteria)]
    style = Style(grader=read_grader_prompt(GRADER))
    return [make_question(unit, [0], attempt=0, style=style) for unit in units]


@pytest.mark.parametrize("aggregation", ASKED)
def test_what_is_sent(aggregation: Aggregation) -> None:
    assert sent(aggregation) == (GOLDEN / f"{aggregation}.txt").read_text(encoding="utf-8")
    rules = (GOLDEN / "rules.txt").read_text(encoding="utf-8")
    for style in STYLES.values():
        found = {rules_and_contract(q)[0] for q in questions(aggregation, style)}
        assert found == {rules.rstrip("\n")}


INVALID: tuple[dict[int, bool], None, str] = ({}, None, "invalid")


@pytest.mark.parametrize(
    ("aggregation", "text", "read"),
    [
        ("explicit", '{"s1": true, "s2": false, "s3": true}', "POSITIONS"),
        ("explicit", '{"s1": true, "s2": false, "grade": 3}', INVALID),
        ("healthbench", '{"s1": false}', ({0: False}, None, "")),
        ("healthbench", '{"criteria_met": true}', INVALID),
        ("writingbench", '{"grade": 10}', ({}, 10, "")),
        ("writingbench", '<think>x</think>```json\n{"grade": 1}\n```', ({}, 1, "")),
        ("writingbench", '{"grade": 11}', INVALID),
        ("writingbench", '{"grade": true}', INVALID),
        ("writingbench", '{"grade": 5, "s1": true}', INVALID),
        ("implicit", '{"grade": 10}', ({}, 10, "")),
        ("implicit", '{"grade": 0}', INVALID),
        ("llmeval_med", '{"grade": 5}', ({}, 5, "")),
        ("llmeval_med", '{"grade": 6}', INVALID),
        ("llmeval_med", "[5]", INVALID),
    ],
)
def test_what_an_answer_to_our_question_says(
    aggregation: Aggregation, text: str, read: Any
) -> None:
    question = questions(aggregation, STYLES["bare"])[0]
    answer = read_answer(question, text)
    if read == "POSITIONS":  # the order follows from the marker
        truths = json.loads(text)
        read = ({s.position: truths[k] for k, s in question.statements.items()}, None, "")
    assert (dict(answer.verdicts), answer.grade, answer.fault) == read


@pytest.mark.parametrize(
    ("aggregation", "text", "read"),
    [
        ("healthbench", '```json\n{"criteria_met": true}\n```', Answer({0: True})),
        ("healthbench", '<think>{}</think> {"criteria_met": false}', Answer({0: False})),
        ("healthbench", '{"criteria_met": 1}', "no 'criteria_met' that is a truth value"),
        ("healthbench", '{"score": 5, "reason": ""}', "no 'criteria_met' that is a truth value"),
        ("healthbench", "no", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("writingbench", '{"score": 7, "reason": "so"}', Answer(grade=7)),
        ("writingbench", '{"score": 7.0, "reason": "so"}', "no 'score' that is a number"),
        ("writingbench", '{"score": 11, "reason": "so"}', "the score 11 is not in 1..10"),
        ("writingbench", '{"score": 7}', "no 'reason' that is a text"),
        ("llmeval_med", '{"score": "[4]"} [5]', Answer(grade=4)),
        ("llmeval_med", "<think>[2]</think>[3]", Answer(grade=3)),
        ("llmeval_med", "[6] [5]", "no grade from [1] to [5]"),
        ("llmeval_med", "4", "no grade from [1] to [5]"),
    ],
)
def test_what_an_answer_of_a_benchmarks_grader_says(
    aggregation: Aggregation, text: str, read: Answer | str
) -> None:
    question = grader_questions(aggregation)[0]
    said = Answer(fault="invalid", problem=read) if isinstance(read, str) else read
    assert read_answer(question, text) == said


@pytest.mark.parametrize(
    ("aggregation", "kept", "grade"),
    [
        ("explicit", '{"verdicts": [true, false, true], "grade": null}', None),
        ("healthbench", '{"verdicts": [true], "grade": null}', None),
        ("writingbench", '{"verdicts": [], "grade": 10}', 10),
        ("implicit", '{"verdicts": [], "grade": 10}', 10),
        ("llmeval_med", '{"verdicts": [], "grade": 5}', 5),
    ],
)
def test_what_is_kept_of_a_judgement(
    aggregation: Aggregation, kept: str, grade: int | None
) -> None:
    asked = prompt(aggregation)
    unit = split_units(asked, RESPONSE, asked.rubric.criteria)[0]
    found = Judgement.read(kept, unit)
    assert found is not None and (found.dump(), found.grade) == (kept, grade)
    off: dict[str, Any] = {"grade": grade + 1} if grade else {"verdicts": []}
    assert Judgement.read(json.dumps(json.loads(kept) | off), unit) is None


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in ASKED:
        (GOLDEN / f"{each}.txt").write_text(sent(each), encoding="utf-8")
    told, _ = rules_and_contract(questions("explicit", STYLES["ours"])[0])
    (GOLDEN / "rules.txt").write_text(f"{told}\n", encoding="utf-8")
