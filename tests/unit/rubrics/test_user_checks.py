"""A user's checks in their child process: no misdeed is a verdict, and none costs another check."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from herl_megatron.rubrics.checks import registry
from herl_megatron.rubrics.checks.isolated.modules import CheckModuleError
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits
from herl_megatron.rubrics.rubric import describe, validate_rubric
from herl_megatron.rubrics.worker import score_texts
from herl_megatron.types import Criterion, CriterionResult, Rubric, Scored, Unscored, Verdict

ROOT = Path(__file__).parents[3]
HEAD = "from herl_megatron.rubrics.checks.registry import register\n"
MEMORY = 256 << 20
# The response is the body of the check: what a check may do, each way in one line of a test.
DOING = (
    HEAD
    + """
import ctypes, mmap, os, signal, sys, threading, time
calls = []

@register("u/do", description="Do as it says.")
def do(response: str) -> bool:
    found = {}
    exec("def body():\\n" + "".join(f"    {line}\\n" for line in response.splitlines()),
         globals(), found)
    return found["body"]()

@register("u/pair", description="Write {most:d} words or fewer, in {language}.")
def pair(response: str, *, most: int, language: str = "English") -> bool:
    return len(response.split()) <= most

def _empty(*, text: str) -> str:
    if text == "hang":
        time.sleep(60)
    if text == "raise":
        raise SystemExit(1)
    return "" if text.strip() else "the text is empty"

@register("u/reads", description="Read {text}.", unreadable=_empty)
def reads(response: str, *, text: str) -> bool:
    return text in response
"""
)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is its own, and its processes end with it."""
    monkeypatch.setattr(registry, "_CHECKS", dict(registry._CHECKS))
    yield
    registry.end_user_processes()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., None]:
    """Write a module and load it."""

    def write_and_load(source: str, name: str = "mine", **limits: Any) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        given = CheckLimits(**{"memory_bytes": MEMORY} | limits)
        registry.load_check_modules([name], folder=str(tmp_path), limits=given)

    return write_and_load


def run(
    response: str, timeout_s: float = 2.0, check: str = "u/do", **params: Any
) -> CriterionResult:
    criterion = Criterion("c", "rule", check=check, params=params)
    return registry.run_check(criterion, response, timeout_s=timeout_s)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


SWALLOWS = "try:\n    {}\nexcept {}:\n    return True\nreturn True"
ENDLESS = "while True:\n    try:\n        time.sleep(9)\n    except BaseException:\n        pass"
MEMORY_SAID = f"took more than {MEMORY:,} bytes of memory (scoring.check_memory_bytes)"
LATE = "gave no verdict within 0.5 s"
MISDEEDS = [
    ("time.sleep(9)", LATE),
    (SWALLOWS.format("time.sleep(9)", "Exception"), LATE),
    (SWALLOWS.format("time.sleep(9)", "BaseException"), LATE),
    ("try:\n    time.sleep(9)\nfinally:\n    return False", LATE),
    (ENDLESS, LATE),
    ("while True:\n    pass", LATE),
    ("import re\nreturn bool(re.match('(a+)+b', 'a' * 40))", LATE),
    ("return 7 ** (7 ** 9) > 0", LATE),
    ("signal.alarm(0)\ntime.sleep(9)\nreturn True", LATE),
    ("signal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(0.7)\nreturn True", LATE),
    ("signal.pthread_sigmask(signal.SIG_BLOCK, [14])\ntime.sleep(0.7)\nreturn True", LATE),
    ("signal.setitimer = print\ntime.monotonic = lambda: 0\ntime.sleep(9)", LATE),
    ("t = threading.Thread(target=time.sleep, args=(9,), daemon=True)\nt.start()\nt.join()", LATE),
    ("os.kill(os.getpid(), signal.SIGSTOP)\nreturn True", LATE),
    ("sys.exit()", "raised SystemExit"),
    ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    ("raise GeneratorExit", "raised GeneratorExit"),
    ("raise type('Own', (BaseException,), {})('x')", "raised Own: x"),
    ("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)", "raised KeyboardInterrupt"),
    ("def no(self):\n    raise SystemExit(1)\nraise type('Own', (Exception,), {'__str__': no})",
     "raised Own: (its text cannot be shown)"),
    ("raise ValueError('x' * 10 ** 7)", f"raised ValueError: {'x' * 300}"),
    ("raise ValueError('half \\ud83d')", "raised ValueError: half \\ud83d"),
    ("return None", "returned None (NoneType); a check must return True or False"),
    ("return 1", "returned 1 (int)"),
    ("import numpy\nreturn numpy.bool_(True)", "(numpy.bool)"),
    ("return lambda: True", "(function); a check must"),
    ("def no(self):\n    raise OSError\nreturn type('Odd', (), {'__repr__': no})()",
     "returned something that cannot be shown (mine.Odd)"),
    ("def no(self):\n    time.sleep(9)\nreturn type('Odd', (), {'__repr__': no})()", LATE),
    ("def f():\n    return f()\nf()", "raised RecursionError"),
    ("os._exit(0)", "ended its process (with exit code 0)"),
    ("os.abort()", "ended its process (by SIGABRT)"),
    ("ctypes.string_at(0)", "ended its process (by SIGSEGV)"),
    ("os.closerange(0, 1000)\nreturn True", "ended its process"),
    ("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(9)", "ended its process"),
    (SWALLOWS.format("bytearray(100 << 30)", "Exception"), MEMORY_SAID),
    (SWALLOWS.format("mmap.mmap(-1, 100 << 30)", "Exception"), MEMORY_SAID),
    ("bytearray(100 << 30)", MEMORY_SAID),
    ("kept = []\n" + SWALLOWS.format("while True: kept.append(bytearray(1 << 20))", "Exception"),
     MEMORY_SAID),
    ("kept = []\n" + SWALLOWS.format("while True: kept.append('x' * 99)", "Exception"),
     MEMORY_SAID),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), MISDEEDS)
def test_what_a_check_does_is_no_verdict_and_costs_no_other(
    load: Callable[..., None], body: str, said: str
) -> None:
    load(DOING)
    asks = Rubric(
        (
            Criterion("bad", "rule", check="u/do"),
            Criterion("good", "rule", check="u/pair", params={"most": 99}),
            Criterion("ours", "rule", check="text/all_lowercase"),
        )
    )
    limit_s = 20.0 if said == MEMORY_SAID else 0.5
    bad, good = score_texts(asks, [body, "return 1 == 1"], check_timeout_s=limit_s)
    assert isinstance(bad, Unscored)
    first, second, third = bad.results
    assert first.verdict is Verdict.UNVERIFIABLE and not first.for_every_response
    assert first.reason.startswith("u/do ") and said in first.reason
    assert len(first.reason) < 500
    assert second.verdict is Verdict.FOLLOWED and third.verdict is not Verdict.UNVERIFIABLE
    assert isinstance(good, Scored) and good.reward == 1.0


GROWS = (
    "x = []\nfor i in range(3_000_000):\n    x.append(i)\nreturn len(x) == 3_000_000",
    "b = bytearray()\nfor _ in range(40):\n    b += bytes(1 << 20)\nreturn len(b) == 40 << 20",
    "s = ''\nfor _ in range(20_000):\n    s += 'abc' * 20\nreturn len(s) == 1_200_000",
    "m = mmap.mmap(-1, 1 << 20)\nm.resize(4 << 20)\nreturn len(m) == 4 << 20",
)


@pytest.mark.parametrize("body", GROWS)
@pytest.mark.parametrize("limit", [None, 1_000_000_000, (4 << 30) + 100])
def test_memory_that_grows_below_the_limit_is_nobodys_fault(
    load: Callable[..., None], body: str, limit: int | None
) -> None:
    """A block that grows is moved by mremap. None is the default."""
    load(DOING, memory_bytes=limit or CheckLimits().memory_bytes)
    assert run(body, timeout_s=30.0).verdict is Verdict.FOLLOWED


def test_memory_that_grows_beyond_the_limit_is_no_verdict(load: Callable[..., None]) -> None:
    load(DOING, memory_bytes=1_000_000_000)
    anonymous = "mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)"
    body = SWALLOWS.format(f"{anonymous}.resize(6 << 30)", "Exception")
    found = run(body, timeout_s=30.0)
    assert found.verdict is Verdict.UNVERIFIABLE
    assert "took more than 1,000,000,000 bytes of memory" in found.reason


def test_too_many_threads_and_a_fork_bomb_are_ended(load: Callable[..., None]) -> None:
    load(DOING, memory_bytes=2 << 30, tasks=30)
    many = SWALLOWS.format(
        "kept = [threading.Thread(target=time.sleep, args=(60,)) for _ in range(10000)]\n"
        "    for thread in kept: thread.start()", "Exception")  # fmt: skip
    result = run(many, 20.0)
    assert result.verdict is Verdict.UNVERIFIABLE
    assert "started too many threads (more than 30, " in result.reason
    start = time.monotonic()
    result = run("while True:\n    os.fork()", 20.0)
    assert time.monotonic() - start < 15.0
    assert result.verdict is Verdict.UNVERIFIABLE
    assert "more than 30 threads and processes" in result.reason
    assert run("return True").verdict is Verdict.FOLLOWED


def test_what_a_check_starts_ends_with_its_process(
    load: Callable[..., None], tmp_path: Path
) -> None:
    """Also what left its session and its parent, and whichever way the check itself ended."""
    load(DOING)
    for number, end in enumerate(("os._exit(1)", "time.sleep(60)", "os.abort()")):
        pids = tmp_path / f"pids{number}"
        body = f"""\
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        open({str(pids)!r}, "a").write(f"{{os.getpid()}}\\n")
        time.sleep(600)
    os._exit(0)
while not os.path.exists({str(pids)!r}):
    time.sleep(0.01)
{end}"""
        assert run(body, 1.0).verdict is Verdict.UNVERIFIABLE
        started = [int(line) for line in pids.read_text().split()]
        assert started and not any(map(alive, started))


def test_a_fork_that_comes_back_answers_nothing(load: Callable[..., None]) -> None:
    load(DOING)
    assert run("os.fork()\nreturn True").verdict is Verdict.FOLLOWED
    assert run("return False").verdict is Verdict.NOT_FOLLOWED
    assert run("return True").verdict is Verdict.FOLLOWED


def test_a_thread_that_was_left_running_is_not_there_for_the_next_check(
    load: Callable[..., None],
) -> None:
    load(DOING)
    left = "threading.Thread(target=lambda: (time.sleep(0.3), os._exit(1))).start()\nreturn True"
    assert run(left).verdict is Verdict.FOLLOWED
    assert run("time.sleep(0.6)\nreturn threading.active_count() == 1").verdict is Verdict.FOLLOWED


def test_a_death_is_tried_once_more_and_the_child_is_kept_otherwise(
    load: Callable[..., None], tmp_path: Path
) -> None:
    """What was killed by somebody else, such as a machine without memory, gets its verdict."""
    load(DOING)
    seen = tmp_path / "seen"
    dies_once = f"""\
if os.path.exists({str(seen)!r}):
    return True
open({str(seen)!r}, "w")
os.abort()"""
    assert run(dies_once).verdict is Verdict.FOLLOWED
    for calls in range(1, 4):
        assert run(f"calls.append(1)\nreturn len(calls) == {calls}").verdict is Verdict.FOLLOWED
    assert run("raise ValueError").verdict is Verdict.UNVERIFIABLE
    assert run("return len(calls) == 3").verdict is Verdict.FOLLOWED


def test_what_a_check_prints_is_no_part_of_the_output(
    load: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    load(DOING)
    assert run("print('said')\nos.write(1, b'raw\\n')\nreturn True").verdict is Verdict.FOLLOWED
    out, err = capfd.readouterr()
    assert out == "" and "said" in err and "raw" in err


def test_parameters_and_descriptions_are_asked_of_the_child(load: Callable[..., None]) -> None:
    load(DOING)
    assert "mine" not in sys.modules
    criterion = Criterion("c", "rule", check="u/pair", params={"most": 3})
    assert describe(criterion) == "Write 3 words or fewer, in English."
    assert run("a b c", check="u/pair", most=3).verdict is Verdict.FOLLOWED
    assert run("a b c d", check="u/pair", most=3).verdict is Verdict.NOT_FOLLOWED
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "most: Field required"),
        ({"most": "x"}, "most: Input should be a valid integer"),
        ({"most": 1, "lang": "x"}, "u/pair takes: most, language"),
    ]
    for params, said in wrong:
        with pytest.raises(ValueError, match=said):
            validate_rubric(Rubric((Criterion("c", "rule", check="u/pair", params=params),)))
    odd = run("x", check="u/pair", most="x")
    assert odd.verdict is Verdict.UNVERIFIABLE and odd.for_every_response


def test_unreadable_parameters_and_what_looking_at_them_may_do(load: Callable[..., None]) -> None:
    load(DOING)
    empty = run("text", check="u/reads", text=" ")
    assert empty.for_every_response and empty.reason == "u/reads: the text is empty"
    assert run("a text", check="u/reads", text="text").verdict is Verdict.FOLLOWED
    raises = run("raise", check="u/reads", text="raise")
    assert raises.verdict is Verdict.UNVERIFIABLE and not raises.for_every_response
    hangs = run("hang", 0.3, check="u/reads", text="hang")
    assert hangs.verdict is Verdict.UNVERIFIABLE
    assert "gave no verdict within 0.3 s" in hangs.reason


def test_a_validator_or_a_format_that_fails_is_a_mistake_in_the_row(
    load: Callable[..., None],
) -> None:
    load(
        HEAD
        + """
import os, time
from typing import Annotated
from pydantic import AfterValidator

class Odd:
    def __format__(self, spec):
        raise RuntimeError("no form")

def _judge(word: str) -> object:
    if word == "exit":
        raise SystemExit(2)
    if word == "die":
        os._exit(0)
    return Odd() if word == "odd" else word

Word = Annotated[str, AfterValidator(_judge)]

@register("u/word", description="Use {word}.")
def word(response: str, *, word: Word) -> bool:
    return word in response
"""
    )
    for word, said in [
        ("exit", "looking at its parameters raised SystemExit: 2"),
        ("odd", "filling its description raised RuntimeError: no form"),
        ("die", "its parameters could not be looked at"),
    ]:
        with pytest.raises(ValueError, match=said):
            criterion = Criterion("c", "rule", check="u/word", params={"word": word})
            validate_rubric(Rubric((criterion,)))
    assert describe(Criterion("c", "rule", check="u/word", params={"word": "x"})) == "Use x."


CHECK = '\n@register("u/x", description="d")\ndef x(response: str) -> bool:\n    return True\n'


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def x(:\n", r"mine\.py:2: SyntaxError"),
        ("\nraise RuntimeError('boom')", r"mine\.py:3: RuntimeError: boom"),
        ("import sys\nsys.exit(3)", r"mine\.py:3: SystemExit: 3"),
        ("raise KeyboardInterrupt", r"mine\.py:2: KeyboardInterrupt"),
        ("import no_such_library", r"cannot import 'mine' .*no_such_library.*mine\.py:2"),
        ("import time\ntime.sleep(60)", r"importing 'mine' took longer than 1 s .*mine\.py:3\)"),
        (
            "import time\nwhile True:\n    try:\n        time.sleep(9)\n"
            "    except BaseException:\n        pass",
            r"importing 'mine' took longer",
        ),
        ("import os\nos._exit(0)", r"importing 'mine' ended its process \(with exit code 0\)"),
        ("import os\nos.abort()", r"importing 'mine' ended its process \(by SIGABRT\)"),
        ("kept = bytearray(100 << 30)", r"mine\.py:2: MemoryError"),
        (CHECK + CHECK, r"mine\.py:7: ValueError: the check 'u/x' is registered twice"),
        (CHECK.replace("u/x", "text/all_lowercase"), "registered twice: in herl_megatron"),
        (CHECK.replace("str)", "str, *, n: Nope)"), r"mine\.py:[34]: NameError: name 'Nope'"),
        (CHECK.replace("str)", "str, *, n)"), "parameters without a type: n"),
        (CHECK.replace("response: str", ""), "takes no response"),
        (CHECK.replace("def", "async def"), "no plain function"),
        (CHECK.replace('"d"', '"{nope}"'), r"names \{nope\}, which is no parameter of the check"),
        (CHECK.replace('"d"', '"{"'), "is no template"),
        ("import json\njson.loads = json.dumps = None\nimport os\nos.close(3)\nos.close(4)"
         "\nos.closerange(5, 99)" + CHECK, "ended its process"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_is_named_with_file_and_line(
    load: Callable[..., None], source: str, said: str
) -> None:
    with pytest.raises(CheckModuleError, match=said) as caught:
        load(HEAD + source, import_s=1.0)
    assert "scoring.check_modules" in str(caught.value)
    assert "u/x" not in registry.names()


@pytest.mark.parametrize("name", ["../mine", "mine.py/", ".mine", "my-checks", ""])
def test_what_is_no_name_of_a_module(name: str) -> None:
    with pytest.raises(CheckModuleError, match="is no name of a module"):
        registry.load_check_modules([name])


def test_two_modules_may_not_take_one_name(load: Callable[..., None]) -> None:
    load(HEAD + CHECK, "first")
    with pytest.raises(CheckModuleError, match=r"twice: in first and in.*second"):
        load(HEAD + CHECK, "second")
    load(HEAD + CHECK, "first")
    assert run("x", check="u/x").verdict is Verdict.FOLLOWED


def test_a_module_that_can_no_longer_be_imported_stops_the_scoring(
    load: Callable[..., None], tmp_path: Path
) -> None:
    """Every later response would be unscored: somebody has to mend it."""
    load(DOING)
    (tmp_path / "mine.py").write_text("raise OSError('its disk is gone')")
    with pytest.raises(CheckModuleError, match=r"mine\.py:1: OSError: its disk is gone"):
        run("os.abort()")


def test_the_import_is_no_part_of_a_checks_time(load: Callable[..., None]) -> None:
    load("import time\ntime.sleep(1.5)\n" + DOING)
    assert run("time.sleep(9)", 0.3).verdict is Verdict.UNVERIFIABLE
    assert run("return True", 0.3).verdict is Verdict.FOLLOWED


def test_children_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DOING)
    pids = tmp_path / "pids"
    body = f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}\\n')\ntime.sleep(60)"
    code = f"""
from herl_megatron.rubrics.checks import registry
from herl_megatron.types import Criterion
registry.load_check_modules(["mine"], folder={str(tmp_path)!r})
registry.run_check(Criterion("c", "rule", check="u/do"), {body!r}, timeout_s=60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), 60.0)
        child, warden = map(int, pids.read_text().split())
        assert alive(child) and alive(warden)
    finally:
        owner.kill()
        owner.wait()
    wait_until(lambda: not alive(child) and not alive(warden))


def test_a_call_costs_far_less_than_a_millisecond(load: Callable[..., None]) -> None:
    """About 0.1 ms; the bound is for a busy machine."""
    load(DOING)
    run("return True")
    took = []
    for _ in range(200):
        start = time.perf_counter()
        run("x", check="u/pair", most=3)
        took.append(time.perf_counter() - start)
    assert sorted(took)[len(took) // 2] < 1e-3
