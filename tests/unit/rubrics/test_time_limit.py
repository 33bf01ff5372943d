"""The limit of a check in this process, and libraries that are ready before it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rubrics.checks import libraries, nltk_tools, registry
from herl_megatron.rubrics.checks.time_limit import CheckTimeout, Finished, run_limited
from herl_megatron.rubrics.worker import needs_of, score_texts
from herl_megatron.types import Criterion, Rubric, Scored, Unscored, Verdict

ROOT = Path(__file__).parents[3]


def swallow_exception() -> bool:
    try:
        time.sleep(9)
    except Exception:
        return True
    return True


def swallow_all() -> bool:
    for _ in range(3):
        try:
            time.sleep(9)
        except BaseException:
            continue
    return True


def go_on_in_finally() -> bool:
    try:
        time.sleep(9)
    finally:
        return False  # noqa: B012


def ignore_the_alarm() -> bool:
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(0.4)
    return True


def block_the_alarm() -> bool:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    try:
        time.sleep(0.4)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    return True


@pytest.mark.parametrize(
    "work",
    [swallow_exception, swallow_all, go_on_in_finally, ignore_the_alarm, block_the_alarm],
)
def test_no_swallowing_makes_a_value_of_a_limit(work: Callable[[], bool]) -> None:
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)
    start = time.monotonic()
    assert run_limited(work, 0.2) is None
    assert time.monotonic() - start < 2.0
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_is_in_time_is_handed_on() -> None:
    assert run_limited(lambda: 7, 5.0) == Finished(7)
    assert run_limited(lambda: None, None) == Finished(None)
    with pytest.raises(KeyError):
        run_limited(lambda: {"y": 1}["x"], float("1e300"))


def test_a_limit_that_goes_off_at_the_very_end_leaves_nothing_behind() -> None:
    """Around the end of the work, at every moment that a microsecond's step meets."""
    late = 0
    for step in range(400):
        until = time.monotonic() + 0.002 + step * 1e-6 - 2e-4

        def spin(until: float = until) -> bool:
            while time.monotonic() < until:
                pass
            return True

        found = run_limited(spin, 0.002)
        late += found is None
        assert found in (None, Finished(True))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert 0 < late


@pytest.mark.parametrize("swallows", [False, True])
def test_a_real_ctrl_c_gets_through(swallows: bool) -> None:
    def work() -> bool:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(9)
        except BaseException:
            if not swallows:
                raise
        return True

    with pytest.raises(KeyboardInterrupt):
        run_limited(work, 5.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Own(BaseException):
    """No Exception, and its text cannot be had."""

    def __str__(self) -> str:
        raise SystemExit(1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "raised KeyboardInterrupt"),
        (SystemExit(0), "raised SystemExit: 0"),
        (GeneratorExit(), "raised GeneratorExit"),
        (Own(), "raised Own: (its text cannot be shown)"),
        (CheckTimeout(), "gave no verdict"),
    ],
)
def test_whatever_a_check_of_this_process_raises_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    monkeypatch.setattr(registry, "_CHECKS", dict(registry._CHECKS))

    @registry.register("here/raises", description="Raise.")
    def raises(response: str) -> bool:
        if response == "fine":
            return True
        raise error

    rubric = Rubric((Criterion("c", "rule", check="here/raises"),))
    bad, good = score_texts(rubric, ["bad", "fine"], check_timeout_s=1.0)
    assert isinstance(bad, Unscored) and said in bad.reason
    assert isinstance(good, Scored) and good.reward == 1.0


@pytest.fixture
def fresh_libraries() -> Iterator[None]:
    libraries._unready.cache_clear()
    yield
    libraries._unready.cache_clear()


# Each library as a slow disk gives it: every file of langdetect takes a while, NLTK's import too.
SLOW = """
import builtins, importlib, sys, time
real_open, real_import = builtins.open, builtins.__import__
def slow_open(file, *args, **more):
    if "langdetect" in str(file) or "syllapy" in str(file):
        time.sleep(0.02)
    return real_open(file, *args, **more)
def slow_import(name, *args, **more):
    if name in ("nltk", "syllapy", "emoji") and name not in sys.modules:
        time.sleep(0.3)
    return real_import(name, *args, **more)
builtins.open, builtins.__import__ = slow_open, slow_import
from herl_megatron.rubrics.checks.registry import run_check
from herl_megatron.types import Criterion
for check, params, text in {cases!r}:
    for _ in range(2):
        result = run_check(Criterion("c", "rule", check=check, params=params), text, timeout_s=0.25)
        print(check, result.verdict.value, result.reason)
"""
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("ifeval/language:response_language", {"language": "de"},
     "The owls are awake all night and sleep by day.", "not_followed"),
    ("ifeval/change_case:english_lowercase", {}, "the owls are awake all night", "followed"),
    ("ifeval/change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, "OWLS FLY.", "followed"),
    ("ifbench/words:odd_even_syllables", {}, "window owl window", "followed"),
    ("ifbench/format:emoji", {}, "An owl.", "not_followed"),
]  # fmt: skip


def test_slow_libraries_are_loaded_outside_of_the_limit() -> None:
    """The verdicts are known; a limit inside of the loading once made langdetect follow anything,
    and left NLTK dead."""
    code = SLOW.replace("{cases!r}", repr([case[:3] for case in CASES]))
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    expected = [f"{check} {verdict} " for check, _, _, verdict in CASES for _ in range(2)]
    assert found.stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("library", "check", "params"),
    [
        ("langdetect", "ifeval/language:response_language", {"language": "en"}),
        ("syllapy", "ifbench/words:odd_even_syllables", {}),
        ("emoji", "ifbench/format:emoji", {}),
        ("math_verify", "math/answer", {"answer": "2"}),
        ("nltk", "ifeval/change_case:capital_word_frequency",
         {"capital_frequency": 2, "capital_relation": "at least"}),
    ],
)  # fmt: skip
def test_a_library_that_cannot_be_warmed_up_leaves_its_checks_unverifiable(
    monkeypatch: pytest.MonkeyPatch, fresh_libraries: None, library: str, check: str,
    params: dict[str, Any],
) -> None:  # fmt: skip
    def broken() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setitem(libraries._WARM_UPS, library, broken)
    criterion = Criterion("c", "rule", check=check, params=params)
    for text in ("The owls are awake all night.", "12345"):
        result = registry.run_check(criterion, text, timeout_s=5.0)
        assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
        assert f"{library} cannot be used here (OSError: " in result.reason


def test_langdetect_with_half_of_its_profiles_gives_no_verdict(
    monkeypatch: pytest.MonkeyPatch, fresh_libraries: None
) -> None:
    from langdetect import detector_factory

    half = detector_factory.DetectorFactory()
    monkeypatch.setattr(detector_factory, "_factory", half)
    criterion = Criterion(
        "c", "rule", check="ifeval/language:response_language", params={"language": "de"}
    )
    result = registry.run_check(criterion, "The owls are awake all night.", timeout_s=5.0)
    assert result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
    assert "langdetect cannot be used here" in result.reason
    # Broken later, it raises: that is no verdict either.
    monkeypatch.setattr(libraries, "library_problem", lambda name: "")
    monkeypatch.setattr("herl_megatron.rubrics.checks.local.library_problem", lambda name: "")
    result = registry.run_check(criterion, "The owls are awake all night.", timeout_s=5.0)
    assert result.verdict is Verdict.UNVERIFIABLE and "LangDetectException" in result.reason


def test_every_check_names_the_library_that_it_imports() -> None:
    """A function-level import that no `requires` announces would run under the limit."""
    from herl_megatron.rubrics.checks import local

    for name in registry.names():
        check = registry.get(name)
        if not isinstance(check, local.Check):
            continue
        used = set(check.run.__code__.co_names) & {"nltk_tools", "syllapy", "is_emoji"}
        wanted = {"nltk_tools": "nltk", "is_emoji": "emoji"}
        assert {wanted.get(one, one) for one in used} <= set(check.requires), name
        if "_is_language" in check.run.__code__.co_names:
            assert "langdetect" in check.requires
    stops = Criterion("c", "rule", check="ifbench/ratio:stop_words", params={"percentage": 5})
    assert needs_of(Rubric((stops,))) == {"nltk", nltk_tools.STOPWORDS}
