"""Rule checks per second on one and on four scoring processes.

    python tools/bench/bench_scoring.py                       # about 3 minutes
    HERL_DATA_DIR=... python tools/bench/bench_scoring.py --pairs 20 --out scoring.json

Two kinds of work, each in groups of eight responses as training has them:
- `hash`: checks of --item-ms of pure computation each, the cost above which four processes are
  asked to be 3.2 times as fast as one;
- `ifeval`: real responses with IFEval's checks at their true cost (a millisecond or so), from
  HERL_DATA_DIR; left out, saying so, where that is not set.
The pools of one and of four workers stand side by side and score the same groups in turns, as does
this process without any pool, which gives the pool's own cost. Times are of the wall.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from herl_megatron.cluster.session import ray_session
from herl_megatron.config.schema import ClusterConfig, ScoringConfig
from herl_megatron.rubrics.checks.registry import load_check_modules
from herl_megatron.rubrics.pool import ScoringPool
from herl_megatron.rubrics.worker import score_texts
from herl_megatron.types import Criterion, Message, Prompt, Rubric, Scored
from tools.bench._bench import Row, interval_text, machine, median_interval, paired_ratio, report
from tools.bench._out import new_file

_GROUP = 8
_MODULES = ("tools.bench._bench_checks",)
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Work:
    """Groups to score; `checks` is the number of single verdicts in them."""

    name: str
    groups: tuple[tuple[Prompt, tuple[str, ...]], ...]

    @property
    def checks(self) -> int:
        """Verdicts that one pass gives."""
        return sum(len(prompt.rubric.criteria) * len(texts) for prompt, texts in self.groups)


def hash_work(item_ms: float, groups: int) -> Work:
    """Groups whose responses cost at least `item_ms` each on this machine."""
    from tools.bench._bench_checks import hashed

    rounds, took_s = 1000, 0.0
    while took_s < item_ms / 1000:
        rounds = int(rounds * 1.2)
        started = time.process_time()
        hashed("x", rounds=rounds)
        took_s = time.process_time() - started
    rubric = Rubric((Criterion("c", "rule", check="bench/hash", params={"rounds": rounds}),))
    texts = tuple(f"response {i}" for i in range(_GROUP))
    return Work("hash", tuple((_prompt(f"h{i}", rubric), texts) for i in range(groups)))


def ifeval_work(folder: str, groups: int) -> Work:
    """The first prompts of IFEval; a group is the real response and seven that lose its tail."""
    found = []
    path = Path(folder) / "ifeval_qwen25_7b.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            rubric = Rubric(tuple(_criteria(row)))
            words = row["response"].split(" ")
            cuts = [len(words) - i * len(words) // 20 for i in range(_GROUP)]
            texts = tuple(" ".join(words[:cut]) for cut in cuts)
            found.append((_prompt(str(row["key"]), rubric), texts))
    return Work("ifeval", tuple(found[:groups]))


def _criteria(row: dict[str, Any]) -> list[Criterion]:
    return [
        Criterion(f"c{i}", "rule", check=f"ifeval/{name}", params=params)
        for i, (name, params) in enumerate(
            zip(row["instruction_id_list"], row["kwargs"], strict=True)
        )
    ]


def _prompt(name: str, rubric: Rubric) -> Prompt:
    return Prompt(name, (Message("user", "x"),), rubric)


async def pool_pass(pool: ScoringPool, work: Work) -> float:
    """Seconds to score all groups, asked for at once."""
    started = time.perf_counter()
    scores = await asyncio.gather(*(pool.score_group(*group) for group in work.groups))
    took_s = time.perf_counter() - started
    unscored = [s.reason for group in scores for s in group if not isinstance(s, Scored)]
    assert not unscored, f"{len(unscored)} responses have no score: {unscored[0]}"
    return took_s


def own_pass(work: Work) -> float:
    """Seconds to score all groups in this process."""
    started = time.perf_counter()
    for prompt, texts in work.groups:
        score_texts(prompt.rubric, texts, check_timeout_s=_TIMEOUT_S)
    return time.perf_counter() - started


async def measure(
    works: Sequence[Work], pairs: int, many: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each pass, by work and by who did it; the first pass of each is thrown away."""
    times: dict[str, dict[str, list[float]]] = {}
    with ray_session(ClusterConfig()):
        pools = {n: ScoringPool(_config(n)) for n in (1, many)}
        try:
            for work in works:
                took: dict[str, list[float]] = {"own": [], "one": [], "many": []}
                for turn in range(pairs + 1):
                    order = ("own", "one", "many") if turn % 2 else ("many", "one", "own")
                    for who in order:
                        if who == "own":
                            took_s = own_pass(work)
                        else:
                            took_s = await pool_pass(pools[1 if who == "one" else many], work)
                        if turn:
                            took[who].append(took_s)
                times[work.name] = took
        finally:
            for pool in pools.values():
                pool.shutdown()
    return times


def _config(workers: int) -> ScoringConfig:
    return ScoringConfig(workers=workers, check_timeout_s=_TIMEOUT_S, check_modules=_MODULES)


def rows_of(work: Work, took: dict[str, list[float]], many: int) -> list[Row]:
    """What people read of one kind of work."""
    groups = len(work.groups)
    speedup = paired_ratio(took["one"], took["many"])
    over = [1000 * (a - b) / groups for a, b in zip(took["one"], took["own"], strict=True)]
    item_ms = 1000 * median(took["own"]) / (groups * _GROUP)
    goal = work.name == "hash"
    one, several = (work.checks / median(took[who]) for who in ("one", "many"))
    return [
        Row(
            f"{work.name}: {many} processes over one",
            interval_text(speedup),
            ">= 3.2x" if goal else "",
            speedup[1] >= 3.2 if goal else None,
        ),
        Row(f"{work.name}: checks/s on 1 and {many} processes", f"{one:,.0f} and {several:,.0f}"),
        Row(f"{work.name}: a response costs, without a pool", f"{item_ms:.2f} ms"),
        Row(
            f"{work.name}: the pool adds to a group of {_GROUP}",
            interval_text(median_interval(over), unit=" ms"),
        ),
    ]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--groups", type=int, default=64, help="groups in one pass")
    parser.add_argument("--item-ms", type=float, default=5.0)
    parser.add_argument("--out", type=new_file)
    args = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[2])  # where workers look for _MODULES
    data = os.environ.get("HERL_DATA_DIR")
    if data:  # before a check imports NLTK, here and in the workers
        os.environ.setdefault("NLTK_DATA", str(Path(data) / "nltk_data"))
    started_on = machine()
    load_check_modules(_MODULES)
    works = [hash_work(args.item_ms, args.groups)]
    if data:
        works.append(ifeval_work(data, args.groups))
    times = asyncio.run(measure(works, args.pairs, args.processes))
    rows = [row for work in works for row in rows_of(work, times[work.name], args.processes)]
    if not data:
        rows.append(Row("ifeval", "not measured: HERL_DATA_DIR is not set"))
    report("Rule scoring", rows, raw=times, started_on=started_on, out=args.out)


if __name__ == "__main__":
    main()
