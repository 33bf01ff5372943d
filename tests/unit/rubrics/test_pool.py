"""The scoring pool on real Ray workers: order, crashes, time limits, counts."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from herl_megatron.config.schema import ScoringConfig
from herl_megatron.rubrics.checks.registry import forget_user_checks
from herl_megatron.rubrics.pool import ScoringPool
from herl_megatron.types import Criterion, Message, Prompt, Rubric, Score, Scored, Unscored

# What no check can do to its own process, it does to the worker that waits for it: the process that
# made the socket between them.
OF_WORKER = """
import os, signal, socket, struct, sys, time
from pathlib import Path
from herl_megatron.rubrics.checks.registry import register

def signal_worker(number):
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as end:
                peer = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            continue
        os.kill(struct.unpack("iii", peer)[0], number)
    time.sleep(60)
"""

# Checks of a user's own module, one for each way in which a check can fail.
FAULTY_CHECKS = (
    OF_WORKER
    + """

@register("faulty/crash", description="Crash while {marker} has fewer than {times} lines.")
def crash(response: str, *, marker: str, times: int) -> bool:
    path = Path(marker)
    lines = path.read_text().count("\\n") if path.exists() else 0
    if lines < times:
        path.write_text("crashed\\n" * (lines + 1))
        signal_worker(signal.SIGKILL)
    return True

@register("faulty/hang", description="Stop the worker.")
def hang(response: str) -> bool:
    signal_worker(signal.SIGSTOP)
    return True

@register("faulty/do", description="Do as the response says.")
def do(response: str) -> bool:
    try:
        exec(response)
    except Exception:
        return True
    return True

@register("faulty/raise", description="Raise on the word bad.")
def raises(response: str) -> bool:
    if "bad" in response:
        raise KeyError("no such entry")
    return True
"""
)


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("checks")
    (folder / "faulty_checks.py").write_text(FAULTY_CHECKS)
    sys.path.insert(0, str(folder))
    paths = os.pathsep.join([str(folder), str(Path(__file__).parents[3])])
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        namespace=folder.name,
        log_to_driver=False,
        runtime_env={
            "env_vars": {"PYTHONPATH": paths},
            "py_executable": shlex.quote(sys.executable),  # a checkout path may hold spaces
        },
    )
    yield folder
    ray.shutdown()
    forget_user_checks()
    sys.path.remove(str(folder))


class CountedPool:
    """One pool for all tests (a worker takes a second to start), counted from `since`."""

    def __init__(self, pool: ScoringPool) -> None:
        self.pool = pool
        self.since = pool.stats()

    def score(self, prompt: Prompt, *texts: str) -> list[Score]:
        return asyncio.run(self.pool.score_group(prompt, texts))

    def counts(self) -> dict[str, int]:
        """What happened since, zeros left out."""
        now = self.pool.stats()
        return {name: n - self.since[name] for name, n in now.items() if n > self.since[name]}


@pytest.fixture(scope="module")
def shared_pool(pool_folder: Path) -> Iterator[ScoringPool]:
    config = ScoringConfig(
        workers=2, check_timeout_s=0.5, timeout_s=3.0, check_modules=("faulty_checks",)
    )
    pool = ScoringPool(config)
    yield pool
    pool.shutdown()


@pytest.fixture
def pool(shared_pool: ScoringPool) -> CountedPool:
    return CountedPool(shared_pool)


def prompt(check: str, **params: Any) -> Prompt:
    criteria = (
        Criterion("c1", "rule", check="ifeval/punctuation:no_comma"),
        Criterion("c2", "rule", check=check, params=params),
    )
    return Prompt(f"p-{check}", (Message("user", "Write."),), Rubric(criteria))


def words(at_least: int) -> Prompt:
    return prompt("ifeval/length_constraints:number_words", num_words=at_least, relation="at least")


def test_groups_and_responses_come_back_in_order(pool: CountedPool) -> None:
    async def score_all() -> list[list[Any]]:
        groups = [pool.pool.score_group(words(n), ["a", "a b", "a, b, c"]) for n in range(1, 41)]
        return await asyncio.gather(*groups)

    rewards = [[score.reward for score in group] for group in asyncio.run(score_all())]
    assert rewards[0] == [1.0, 1.0, 0.5]
    assert rewards[1] == [0.5, 1.0, 0.5]
    assert rewards[2] == [0.5, 0.5, 0.5]
    assert rewards[3:] == [[0.5, 0.5, 0.0]] * 37
    assert pool.counts() == {"groups": 40, "responses": 120}


def test_strict_and_loose_scores_come_from_the_same_workers(pool: CountedPool) -> None:
    """Two words at least and no comma; without its first line the text has none."""

    async def both() -> tuple[list[Any], ...]:
        group = (words(2), ["Sure, here:\nan owl"])
        return await asyncio.gather(
            pool.pool.score_group(*group),
            pool.pool.score_loosely(*group),
            pool.pool.score_group(*group),
        )

    assert [scores[0].reward for scores in asyncio.run(both())] == [0.5, 1.0, 0.5]


def test_crashed_worker_is_replaced_and_the_group_scored_again(
    pool: CountedPool, tmp_path: Path
) -> None:
    crashing = prompt("faulty/crash", marker=str(tmp_path / "once"), times=1)
    scores = pool.score(crashing, "fine", "not, fine")
    assert [score.reward for score in scores if isinstance(score, Scored)] == [1.0, 0.5]
    assert pool.counts() == {"groups": 1, "responses": 2, "worker_crashes": 1}


def test_group_that_crashes_twice_is_isolated_and_others_go_on(
    pool: CountedPool, tmp_path: Path
) -> None:
    crashing = prompt("faulty/crash", marker=str(tmp_path / "always"), times=99)

    async def score_both() -> list[Any]:
        calls = [pool.pool.score_group(crashing, ["a", "b"])]
        calls += [pool.pool.score_group(words(1), ["a"]) for _ in range(6)]
        return await asyncio.gather(*calls)

    isolated, *others = asyncio.run(score_both())
    assert isolated == [Unscored("the group crashed 2 scoring workers")] * 2
    assert [group[0].reward for group in others] == [1.0] * 6
    counts = pool.counts()
    assert counts.pop("worker_crashes") in (2, 3)  # one more where groups shared a call
    assert counts == {"groups": 7, "responses": 8, "unscored": 2, "isolated_groups": 1}


def test_groups_that_shared_a_call_with_a_fatal_one_are_scored_again(
    pool: CountedPool, tmp_path: Path
) -> None:
    """And those that shared one with a group that hangs: each result is its own group's."""
    for _ in range(2):
        pool.score(words(1), "a")  # now a lane knows that groups are quick and takes several
    fatal = prompt("faulty/crash", marker=str(tmp_path / "always"), times=99)
    asked = [words(n) for n in range(1, 31)]
    asked[10], asked[20] = fatal, prompt("faulty/hang")

    async def score_all() -> list[list[Score]]:
        return await asyncio.gather(*(pool.pool.score_group(one, ["a b c"]) for one in asked))

    found = asyncio.run(score_all())
    assert found.pop(20) == [Unscored("the group was not scored within 3 s")]
    assert found.pop(10) == [Unscored("the group crashed 2 scoring workers")]
    rewards = [score.reward for (score,) in found if isinstance(score, Scored)]
    assert rewards == [1.0] * 3 + [0.5] * 25  # three words, of the 28 limits 1, 2, 3, ...
    counts = pool.counts()
    assert counts.pop("worker_crashes") in (2, 3)
    assert counts == {
        "groups": 32, "responses": 32, "unscored": 2, "isolated_groups": 1, "group_timeouts": 1,
    }  # fmt: skip


def test_backtracking_check_costs_one_response_not_the_group(pool: CountedPool) -> None:
    slow = prompt("ifeval/keywords:existence", keywords=["(a+)+b"])
    hopeless, quick = pool.score(slow, "a" * 40, "aab")
    assert isinstance(hopeless, Unscored) and "no verdict within 0.5 s" in hopeless.reason
    assert isinstance(quick, Scored) and quick.reward == 1.0
    assert pool.counts() == {"groups": 1, "responses": 2, "unscored": 1, "check_failures": 1}


def test_group_past_its_time_limit_is_unscored_and_the_pool_goes_on(pool: CountedPool) -> None:
    scores = pool.score(prompt("faulty/hang"), "a")
    assert scores == [Unscored("the group was not scored within 3 s")]
    assert all(isinstance(pool.score(words(1), "a")[0], Scored) for _ in range(4))
    assert pool.counts() == {"groups": 5, "responses": 5, "unscored": 1, "group_timeouts": 1}


def test_check_that_raises_is_a_counted_failure_of_that_response(pool: CountedPool) -> None:
    bad, good = pool.score(prompt("faulty/raise"), "bad", "good")
    assert isinstance(bad, Unscored)
    assert "faulty/raise raised KeyError: 'no such entry'" in bad.reason
    assert isinstance(good, Scored) and good.reward == 1.0
    assert pool.counts() == {"groups": 1, "responses": 2, "unscored": 1, "check_failures": 1}


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("sys.exit(0)", "raised SystemExit: 0"),
        ("os._exit(0)", "ended its process (with exit code 0)"),
        ("time.sleep(30)", "gave no verdict within 0.5 s"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [14]); time.sleep(30)", "no verdict within 0.5"),
        ("bytearray(1 << 40)", "bytes of memory (scoring.check_memory_bytes)"),
    ],
)
def test_whatever_a_check_does_costs_its_own_response(
    pool: CountedPool, response: str, said: str
) -> None:
    bad, good = pool.score(prompt("faulty/do"), response, "pass")
    assert isinstance(bad, Unscored) and said in bad.reason
    assert isinstance(good, Scored) and good.reward == 1.0
    assert pool.counts() == {"groups": 1, "responses": 2, "unscored": 1, "check_failures": 1}


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "SystemExit(3)", "GeneratorExit"])
def test_what_the_scoring_itself_raises_is_isolated_like_a_death(
    pool: CountedPool, pool_folder: Path, raised: str
) -> None:
    """KeyboardInterrupt in a worker arrives as TaskCancelledError, which once ended everything."""
    (pool_folder / "explosive.py").write_text(
        "class Params:\n"
        "    def __init__(self, raised):\n"
        "        self.raised = raised\n"
        "    def items(self):\n"
        "        raise self.raised\n"
    )  # fmt: skip
    explosive = importlib.import_module("explosive")
    criterion = Criterion(
        "c", "rule", check="text/all_lowercase", params=explosive.Params(eval(raised))
    )
    bad = Prompt("bad", (Message("user", "Write."),), Rubric((criterion,)))

    async def score_all() -> list[list[Score]]:
        asked = [words(1), bad, *(words(1) for _ in range(6))]
        return await asyncio.gather(*(pool.pool.score_group(one, ["a"]) for one in asked))

    found = asyncio.run(score_all())
    assert found.pop(1) == [Unscored("the group crashed 2 scoring workers")]
    assert [score.reward for (score,) in found if isinstance(score, Scored)] == [1.0] * 7
    assert pool.counts()["isolated_groups"] == 1


def test_left_out_criterion_is_counted_per_group_and_said_once_per_prompt(
    pool: CountedPool, caplog: pytest.LogCaptureFixture
) -> None:
    first = prompt("muldimif/Format/XML", text="Use XML")  # reads as no requirement
    for one in (first, first, replace(first, id="another")):
        scores = pool.score(one, "a", "a, b")
        assert [score.reward for score in scores if isinstance(score, Scored)] == [1.0, 0.0]
        best = scores[0]
        assert isinstance(best, Scored)
        assert (best.satisfied, best.unmet, best.left_out) == (("c1",), (), ("c2",))
    assert pool.counts() == {"groups": 3, "responses": 6, "left_out_criteria": 3}
    said = [r for r in caplog.records if "left out" in r.getMessage()]
    assert [r.levelname for r in said] == ["WARNING"] * 2
    assert [r.getMessage().split(": muldimif")[0] for r in said] == [
        "prompt p-muldimif/Format/XML: criterion c2 is left out",
        "prompt another: criterion c2 is left out",
    ]
    assert all("no requirement that this rule knows" in r.getMessage() for r in said)


def test_metrics_are_counts_since_the_last_call(pool: CountedPool) -> None:
    pool.pool.metrics()
    pool.score(prompt("faulty/raise"), "bad", "bad", "good")
    pool.score(prompt("ifeval/keywords:existence", keywords=["(a+)+b"]), "a" * 40)
    pool.score(prompt("muldimif/Format/XML", text="Use XML"), "a")
    nothing = {
        "scoring/left_out_criteria": 0.0,
        "scoring/check_failures": 0.0,
        "scoring/worker_crashes": 0.0,
        "scoring/group_timeouts": 0.0,
        "scoring/isolated_groups": 0.0,
    }
    new = {"scoring/left_out_criteria": 1.0, "scoring/check_failures": 3.0}
    assert pool.pool.metrics() == nothing | new
    assert pool.pool.metrics() == nothing


def test_a_librarys_import_is_no_part_of_a_groups_time(
    pool_folder: Path,
) -> None:
    """A worker whose langdetect takes longer to load than a group may take gives its verdicts."""
    source = importlib.util.find_spec("langdetect")
    assert source is not None and source.origin is not None
    package = pool_folder / "langdetect"
    shutil.copytree(Path(source.origin).parent, package)
    init = package / "__init__.py"
    init.write_text("import time\ntime.sleep(3)\n" + init.read_text())
    try:
        pool = ScoringPool(ScoringConfig(workers=1, check_timeout_s=1.0, timeout_s=2.0))
        try:
            german = prompt("ifeval/language:response_language", language="de")
            texts = ["The owls are awake all night.", "Die Eulen sind die ganze Nacht wach."]
            scores = CountedPool(pool).score(german, *texts)
        finally:
            pool.shutdown()
    finally:
        shutil.rmtree(package)
    assert [score.reward for score in scores if isinstance(score, Scored)] == [0.5, 1.0]


def test_check_module_in_the_drivers_working_directory_is_found_by_workers(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(tmp_path) not in sys.path and Path.cwd() != tmp_path
    (tmp_path / "checks_here.py").write_text(
        "from herl_megatron.rubrics.checks.registry import register\n"
        "@register('here/owl', description='Name an owl.')\n"
        "def owl(response: str) -> bool:\n"
        "    return 'owl' in response if 'fern' not in response else None\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = ScoringPool(ScoringConfig(workers=1, check_modules=("checks_here",)))
    monkeypatch.undo()
    try:
        good, odd = CountedPool(pool).score(prompt("here/owl"), "an owl", "a fern")
        assert isinstance(good, Scored) and good.reward == 1.0
        assert isinstance(odd, Unscored) and "here/owl returned None (NoneType)" in odd.reason
        assert pool.stats()["check_failures"] == 1
    finally:
        pool.shutdown()


def test_worker_that_cannot_be_replaced_fails_every_waiting_group_with_the_reason(
    pool_folder: Path, tmp_path: Path
) -> None:
    """Not one of them is cancelled: that would end a run as if somebody had interrupted it."""
    gone = tmp_path / "gone"
    (pool_folder / "vanishing_checks.py").write_text(
        f"{OF_WORKER}\n"
        f"GONE = Path({str(gone)!r})\n"
        "if GONE.exists():\n"
        "    raise RuntimeError('its file system is gone')\n"
        "@register('vanishing/die', description='Crash for good.')\n"
        "def die(response: str) -> bool:\n"
        "    GONE.touch()\n"
        "    signal_worker(signal.SIGKILL)\n"
        "    return True\n"
    )
    pool = ScoringPool(ScoringConfig(workers=1, check_modules=("vanishing_checks",)))

    async def score_all() -> list[Any]:
        asked = [prompt("vanishing/die"), *(words(n) for n in range(1, 7))]
        calls = [pool.score_group(one, ["a"]) for one in asked]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)

    try:
        found = asyncio.run(score_all())
    finally:
        pool.shutdown()
    assert [type(error) for error in found] == [ValueError] * 7
    assert all("a scoring worker did not start" in str(error) for error in found)


def test_what_a_worker_imports_is_light() -> None:
    """Workers start in a second because none of these comes along."""
    code = (
        "import sys, herl_megatron.rubrics.pool\n"
        "print([m for m in ('torch', 'transformers', 'langdetect', 'nltk') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
