"""Parameters of checks, descriptions, blank responses and the time limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rubrics.checks import nltk_tools, registry
from herl_megatron.rubrics.checks.local import Check
from herl_megatron.types import Criterion, Verdict

WORDS = "ifeval/length_constraints:number_words"


def rule(check: str, **params: Any) -> Criterion:
    return Criterion("c", "rule", check=check, params=params)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"num_words": 3}, "relation: Field required"),
        ({"num_words": None, "relation": "at least"}, "num_words: Field required"),
        ({"num_words": 3, "relation": "more than"}, "'at least' or 'less than'"),
        ({"num_words": 3.5, "relation": "at least"}, "num_words"),
        ({"num_words": -1, "relation": "at least"}, "num_words"),
        ({"num_words": 3, "relation": "at least", "unit": "w"}, "unit: Extra inputs"),
    ],
)
def test_bad_parameters_are_unverifiable_for_every_response(
    params: dict[str, Any], reason: str
) -> None:
    for response in ("one two three", ""):
        result = registry.run_check(rule(WORDS, **params), response)
        assert result.verdict is Verdict.UNVERIFIABLE
        assert result.for_every_response
        assert reason in result.reason and WORDS in result.reason


def test_whole_floats_and_nulls_of_tables_are_accepted() -> None:
    criterion = rule(WORDS, num_words=3.0, relation="at least", keyword=None)
    assert registry.run_check(criterion, "one two three").verdict is Verdict.FOLLOWED
    assert registry.run_check(criterion, "one two").verdict is Verdict.NOT_FOLLOWED
    assert registry.parameter_problem(criterion) == ""


def test_invalid_regular_expression_is_a_bad_parameter() -> None:
    result = registry.run_check(rule("ifeval/keywords:existence", keywords=["(a"]), "text")
    assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
    assert "'(a' is not a regular expression" in result.reason


def test_random_letter_of_the_benchmark_is_unverifiable() -> None:
    criterion = rule(
        "ifeval/keywords:letter_frequency", letter="#", let_frequency=4, let_relation="at least"
    )
    assert registry.parameter_problem(criterion) == ""  # the benchmark's data loads
    result = registry.run_check(criterion, "# # # #")
    assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
    assert "'#' is not a letter" in result.reason


def test_unknown_check_is_unverifiable_for_every_response() -> None:
    result = registry.run_check(rule("ifeval/punctuation:no_coma"), "text")
    assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
    assert "did you mean 'ifeval/punctuation:no_comma'" in result.reason


def test_blank_response_follows_nothing() -> None:
    for check in ("ifeval/punctuation:no_comma", "text/all_lowercase"):
        assert registry.run_check(rule(check), " \n").verdict is Verdict.NOT_FOLLOWED


def test_backtracking_without_end_is_cut_off_for_this_response_only() -> None:
    criterion = rule("ifeval/keywords:existence", keywords=["(a+)+b"])
    start = time.perf_counter()
    result = registry.run_check(criterion, "a" * 40, timeout_s=0.2)
    assert time.perf_counter() - start < 2.0
    assert result.verdict is Verdict.UNVERIFIABLE and not result.for_every_response
    assert "no verdict within 0.2 s" in result.reason
    assert registry.run_check(criterion, "aab", timeout_s=0.2).verdict is Verdict.FOLLOWED


def test_loose_accepts_any_of_eight_variants() -> None:
    phrase = rule("ifeval/startend:end_checker", end_phrase="the end")
    quoted = rule("ifeval/startend:quotation")
    cases = [
        (phrase, "**the end**"),  # without stars
        (phrase, "Owls. The end\nBye."),  # without the last line
        (quoted, 'Sure:\n"Owls."'),  # without the first
        (quoted, 'Sure:\n"Owls."\nBye.'),  # without both
        (quoted, 'Sure:\n*"Owls."*\nBye.'),  # without both and stars
    ]
    for criterion, response in cases:
        assert registry.run_check(criterion, response).verdict is Verdict.NOT_FOLLOWED
        loose = registry.run_check(criterion, response, mode="loose")
        assert loose.verdict is Verdict.FOLLOWED, response
    refused = registry.run_check(quoted, 'a\nb\n"Owls."\nc', mode="loose")
    assert refused.verdict is Verdict.NOT_FOLLOWED


def test_variant_that_becomes_blank_follows_nothing() -> None:
    comma = rule("ifeval/punctuation:no_comma")
    for response in ("owls, ferns", "***", "owls, ferns\n*"):
        verdict = registry.run_check(comma, response, mode="loose").verdict
        # The second line of the last one is a star: not blank, and without a comma.
        expected = Verdict.FOLLOWED if "*" in response else Verdict.NOT_FOLLOWED
        assert verdict is expected, response


@pytest.mark.parametrize(
    ("check", "params", "package"),
    [
        (
            "ifeval/length_constraints:number_sentences",
            {"num_sentences": 1, "relation": "at least"},
            "punkt_tab",
        ),
        ("ifbench/words:start_verb", {}, "punkt_tab"),
        ("ifbench/ratio:stop_words", {"percentage": 50}, "stopwords"),
        ("muldimif/Content/Punctuation", {"text": "Each ends with a period"}, "punkt_tab"),
    ],
)
def test_missing_nltk_data_is_unverifiable_for_every_response(
    monkeypatch: pytest.MonkeyPatch, check: str, params: dict[str, Any], package: str
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    nltk_tools.missing_data.cache_clear()
    try:
        for response in ("An owl.", ""):
            result = registry.run_check(rule(check, **params), response)
            assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
            assert f"{package!r} is not found; set NLTK_DATA" in result.reason
    finally:
        nltk_tools.missing_data.cache_clear()


def test_checks_import_nothing_heavy() -> None:
    code = (
        "import sys, herl_megatron.rubrics.checks\n"
        "heavy = ('nltk', 'langdetect', 'syllapy', 'emoji', 'math_verify', 'torch')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    ("check", "params", "expected"),
    [
        (WORDS, {"num_words": 20, "relation": "at least"}, "Use at least 20 words."),
        (
            "ifeval/keywords:forbidden_words",
            {"forbidden_words": ["oak", "fern"]},
            "Do not use the words: oak, fern.",
        ),
        ("ifeval/startend:end_checker", {"end_phrase": "Bye."}, "End with the phrase: Bye."),
        ("text/all_uppercase", {}, "Use only capital letters."),
        (WORDS, {}, f"Follow the rule {WORDS}."),
    ],
)
def test_checks_describe_themselves(check: str, params: dict[str, Any], expected: str) -> None:
    assert registry.describe(rule(check, **params)) == expected


def test_every_description_can_be_filled_from_the_parameters() -> None:
    for name in registry.names():
        check = registry.get(name)
        assert isinstance(check, Check)  # no user's
        dummy = {key: "x" for key in check.params.model_fields}
        assert check.description.format(**dummy)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "None (NoneType)"), ("no", "'no' (str)"), (1, "1 (int)")]
)
def test_only_a_bool_is_a_verdict(
    monkeypatch: pytest.MonkeyPatch, value: object, shown: str
) -> None:
    monkeypatch.setattr(registry, "_CHECKS", {})

    @registry.register("mine/odd", description="Be odd.")
    def odd(response: str) -> bool:
        return value if "odd" in response else False  # type: ignore[return-value]

    result = registry.run_check(rule("mine/odd"), "an odd text")
    assert result.verdict is Verdict.UNVERIFIABLE and not result.for_every_response
    assert result.reason == f"mine/odd returned {shown}; a check must return True or False"
    assert registry.run_check(rule("mine/odd"), "even").verdict is Verdict.NOT_FOLLOWED
    loose = registry.run_check(rule("mine/odd"), "even\nodd", mode="loose")
    assert loose.verdict is Verdict.UNVERIFIABLE


def test_check_module_beside_a_console_script_is_found_in_the_working_directory(
    tmp_path: Path,
) -> None:
    """`-P` leaves the working directory off the path, as a console script does."""
    (tmp_path / "my_checks.py").write_text(
        "from herl_megatron.rubrics.checks.registry import register\n"
        "import colorsys, helper_of_mine\n"
        "@register('mine/here', description='Be here.')\n"
        "def here(response: str) -> bool:\n"
        "    return True\n"
    )
    (tmp_path / "helper_of_mine.py").write_text("")
    # A file with the name of an installed module: that one is imported, not the user's.
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the file here won')\n")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from herl_megatron.rubrics.checks import registry\n"
        "before = list(sys.path)\n"
        "registry.load_check_modules(['my_checks'])\n"
        "print(registry.get('mine/here').name, sys.path == before)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "mine/here True\n", found.stderr


def test_unknown_check_module_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"scoring\.check_modules.*no_such_checks"):
        registry.load_check_modules(["no_such_checks"])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ifeval/no_coma", "ifeval/punctuation:no_comma"),
        ("no_comma", "ifeval/punctuation:no_comma"),
        ("IFEval/Punctuation:No_Comma", "ifeval/punctuation:no_comma"),
        ("lowercase", "text/all_lowercase"),
    ],
)
def test_an_unknown_check_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="unknown check") as caught:
        registry.get(name)
    assert f"did you mean '{nearest}'?" in str(caught.value)


def test_a_name_like_no_other_is_not_answered_with_all_names() -> None:
    with pytest.raises(ValueError, match=r"unknown check 'x9'; did you mean '.*check_m") as caught:
        registry.get("x9")
    assert len(str(caught.value)) < 250
