"""How long a background save holds up training, against the blocking save of the same state.

    python tools/bench/bench_checkpoint.py --folder /big/disk  # 2.1 GB on one rank, 6 turns
    python tools/bench/bench_checkpoint.py --folder /big/disk --ranks 2 --out bench.json

One process per rank holds a bf16 model with fp32 main weights and Adam's moments under the
distributed optimizer (14 bytes per parameter). In turns: the save that returns when everything is
written and flushed (fsync), straight from where it lies; and the background save, followed by

- a whole training step at once (of very few tokens, so that little time passes before the update);
- such a step after a while of other work, as after the rollouts;
- nothing but the update: the wait for the whole copy.

The stall is the time that starting the save takes plus the time that the optimizer step waits for
the copy. Shown too: by how much the training step that begins at once is longer than an undisturbed
one just before (waiting, and sharing memory bandwidth and cores with the copy and the writer), and
the slowdown of matrix products while the copy is written. Memory is what a save adds to RssAnon and
RssShmem, sampled every 5 ms; the copy's memory is kept between saves, so the first background save,
which has to get it from the kernel, is shown by itself and left out of the ratios. What was saved
in the background while training changed it is loaded back and compared with what it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file

STALL_GOAL, MEMORY_GOAL = 0.10, 1.1
VOCAB = 8192
STEP_TOKENS, ROLLOUT_S = 64, 1.0


def write_config(folder: Path, *, layers: int, hidden: int) -> None:
    """A Qwen2-shaped model without weights; they are drawn."""
    config = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


class PeakMemory:
    """Growth of this process's anonymous memory while the block runs, in bytes."""

    def __enter__(self) -> PeakMemory:
        self._start, self.growth, self._stop = _anonymous_bytes(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.growth = max(self.growth, _anonymous_bytes() - self._start)


def _anonymous_bytes() -> int:
    found = re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", Path("/proc/self/status").read_text())
    return sum(int(kilobytes) << 10 for kilobytes in found)


def products(seconds: float) -> float:
    """Matrix products per second over at least so long: the training that goes on."""
    a = torch.randn(384, 384)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        a @ a
        count += 1
    return count / spent


def build(rank: int, args: argparse.Namespace, store: str) -> tuple[Any, Any]:
    """This rank's actor and groups."""
    from herl_megatron.config.schema import (
        MegatronConfig,
        ModelConfig,
        OptimizerConfig,
    )
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.actor import MegatronActor
    from herl_megatron.megatron.parallel import init_parallel

    megatron = MegatronConfig(data_parallel=args.ranks, precision="bf16")
    groups = init_parallel(
        megatron, rank=rank, world_size=args.ranks, init_method=f"file://{store}/store",
        device=choose_device("cpu"), seed=0,
    )  # fmt: skip
    actor = MegatronActor(
        model=ModelConfig(path=store, random_init=True), megatron=megatron,
        optimizer=OptimizerConfig(), total_optimizer_steps=1, seed=0, groups=groups,
    )  # fmt: skip
    return actor, groups


def few_rows(args: argparse.Namespace) -> list[Any]:
    """One short row per rank, as shards."""
    from herl_megatron.batching.shards import make_shards
    from herl_megatron.config.schema import MegatronConfig
    from herl_megatron.types import TokenRow

    tokens = np.arange(STEP_TOKENS, dtype=np.int32)
    half = STEP_TOKENS // 2
    rows = [TokenRow(f"row {n}", tokens[:half], tokens[half:]) for n in range(args.ranks)]
    megatron = MegatronConfig(data_parallel=args.ranks, precision="bf16")
    return list(make_shards(rows, megatron=megatron))


class Saves:
    """The kinds of save, each one turn; `found` has their seconds and bytes."""

    def __init__(self, rank: int, args: argparse.Namespace, store: str) -> None:
        from herl_megatron.megatron.staging import StagingMemory

        self._rank = rank
        self._actor, self._groups = build(rank, args, store)
        self._shard = few_rows(args)[rank]
        self._staging = StagingMemory()
        self._folder = Path(store) / "save"
        self.found: dict[str, Any] = {
            kind: []
            for kind in (
                "blocking_s",
                "at_once_s",
                "rollouts_s",
                "bare_s",
                "quiet_s",
                "extra_s",
                "slowdown",
            )
        }
        self.found |= {"write_s": [], "blocking_memory": 0, "background_memory": 0}

    def fresh(self) -> None:
        """An empty folder, nothing left to be flushed."""
        import torch.distributed as dist

        dist.barrier()
        if self._rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            os.sync()
        dist.barrier()

    def blocking(self) -> None:
        """The save that writes before it returns."""
        from herl_megatron.megatron.checkpoint import save_checkpoint

        self.fresh()
        with PeakMemory() as memory:
            start = time.perf_counter()
            save_checkpoint(self._actor, self._folder, groups=self._groups)
            self.found["blocking_s"].append(time.perf_counter() - start)
        self.found["blocking_memory"] = max(self.found["blocking_memory"], memory.growth)
        files = self._folder.glob(f"__{self._rank}_*.distcp")
        self.found["part_bytes"] = sum(file.stat().st_size for file in files)

    def bare(self) -> None:
        """The update comes at once; its memory, and what the writer takes from others."""
        self.fresh()
        quiet = products(0.3)
        with PeakMemory() as memory:
            start = time.perf_counter()
            write = self._begin()
            self._actor.optimizer.gate.wait()
            self.found["bare_s"].append(time.perf_counter() - start)
            busy = products(0.3)
            write.wait()
            self.found["write_s"].append(time.perf_counter() - start)
            write.finish()
        self.found["slowdown"].append(quiet / busy)
        self.found["background_memory"] = max(self.found["background_memory"], memory.growth)

    def at_once(self) -> None:
        """A training step right behind the save."""
        self.fresh()
        quiet_s = self._step()
        self.found["quiet_s"].append(quiet_s)
        self._with_step(self.found["at_once_s"], quiet_s)

    def rollouts(self) -> None:
        """Other work first."""
        self.fresh()
        self._with_step(self.found["rollouts_s"], None)

    def same(self) -> bool:
        """Whether a save that a training step follows holds what was before it."""
        from herl_megatron.megatron.checkpoint import load_checkpoint

        self.fresh()
        weights = [p for chunk in self._actor.chunks for p in chunk.parameters()]
        held = [tensor.detach().clone() for tensor in weights]
        write = self._begin()
        self._step()
        write.finish()
        moved = any(not torch.equal(a, b) for a, b in zip(held, weights, strict=True))
        load_checkpoint(self._actor, self._folder, groups=self._groups)
        return moved and all(torch.equal(a, b) for a, b in zip(held, weights, strict=True))

    def _begin(self) -> Any:
        from herl_megatron.megatron.checkpoint import begin_save

        return begin_save(self._actor, self._folder, groups=self._groups, staging=self._staging)

    def _step(self) -> float:
        start = time.perf_counter()
        self._actor.sft_step(self._shard)
        return time.perf_counter() - start

    def _with_step(self, stalls: list[float], quiet_s: float | None) -> None:
        gate = self._actor.optimizer.gate
        waited_s = gate.waited_s
        start = time.perf_counter()
        write = self._begin()
        begun_s = time.perf_counter() - start
        if quiet_s is None:
            products(ROLLOUT_S)
        step_s = self._step()
        stalls.append(begun_s + gate.waited_s - waited_s)
        if quiet_s is not None:
            self.found["extra_s"].append(begun_s + step_s - quiet_s)
        write.wait()
        write.finish()


def work(rank: int, args: argparse.Namespace, store: str, answers: Any) -> None:
    """One rank: all saves in turns."""
    torch.set_num_threads(1)
    saves = Saves(rank, args, store)
    kinds = (saves.blocking, saves.at_once, saves.rollouts, saves.bare)
    for turn in (saves.blocking, saves.bare, saves.at_once, saves.rollouts):
        turn()  # the first turn of each warms up, and Adam's moments are made in it
    first_s = saves.found["bare_s"][0]
    saves.found |= {name: [] for name, value in saves.found.items() if isinstance(value, list)}
    saves.found["blocking_memory"] = 0
    for _ in range(args.pairs):
        for turn in kinds:
            turn()
    answers.put((rank, saves.found | {"first_stall_s": first_s, "same": saves.same()}))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every rank's measurements."""
    work_folder = tempfile.mkdtemp(prefix="bench_checkpoint_", dir=args.folder)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = []
    try:
        write_config(Path(work_folder), layers=args.layers, hidden=args.hidden)
        for rank in range(args.ranks):
            ranks.append(context.Process(target=work, args=(rank, args, work_folder, answers)))
            ranks[-1].start()
        found = dict(answers.get(timeout=args.limit_s) for _ in ranks)
        return [found[rank] for rank in range(args.ranks)]
    finally:
        for process in ranks:
            process.join(10)
            process.kill()
        shutil.rmtree(work_folder)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers", type=int, default=13, help="13 make 2.1 GB")
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel ranks")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--limit-s", type=float, default=900)
    parser.add_argument("--out", type=new_file, help="JSON")
    args = parser.parse_args()
    started_on = machine()
    square = args.hidden**2
    parameters = VOCAB * args.hidden + args.layers * (square * 5 // 2 + 3 * square * 11 // 4)
    if (free := shutil.disk_usage(args.folder).free) < 16 * parameters:
        raise SystemExit(f"{args.folder} has {free:,} bytes free, {16 * parameters:,} are needed")
    ranks = run(args)
    size = max(rank["part_bytes"] for rank in ranks)
    slowest = {
        kind: [max(times) for times in zip(*(rank[kind] for rank in ranks), strict=True)]
        for kind in ("blocking_s", "at_once_s", "rollouts_s", "bare_s", "quiet_s", "extra_s")
    }
    blocking = slowest["blocking_s"]
    at_once, rollouts, bare = (
        paired_ratio(slowest[kind], blocking) for kind in ("at_once_s", "rollouts_s", "bare_s")
    )
    memory = max(rank["background_memory"] / rank["part_bytes"] for rank in ranks)
    direct = max(rank["blocking_memory"] / rank["part_bytes"] for rank in ranks)
    slowdown = [x for rank in ranks for x in rank["slowdown"]]
    same = all(rank["same"] for rank in ranks)
    first = max(rank["first_stall_s"] for rank in ranks)
    rows = [
        Row("stall / blocking save, training step at once", interval_text(at_once),
            f"<= {STALL_GOAL}", at_once[0] <= STALL_GOAL),
        Row("stall / blocking save, after the rollouts", interval_text(rollouts),
            f"<= {STALL_GOAL}", rollouts[0] <= STALL_GOAL),
        Row("the same with an update and nothing before it", interval_text(bare)),
        Row("an undisturbed training step, median", f"{median(slowest['quiet_s']):.2f} s"),
        Row("training step at once: longer by, median", f"{median(slowest['extra_s']):.2f} s"),
        Row("blocking save, median", f"{median(blocking):.2f} s"),
        Row("the whole copy, median", f"{median(slowest['bare_s']):.3f} s"),
        Row("the whole copy, first save", f"{first:.3f} s"),
        Row("compute while writing: slowdown, median", f"{median(slowdown):.2f}x"),
        Row("memory of the background save / part", f"{memory:.2f}", f"<= {MEMORY_GOAL}",
            memory <= MEMORY_GOAL),
        Row("memory of the blocking save / part", f"{direct:.2f}"),
        Row("saved beside a training step, loaded back", "equal" if same else "differs", "equal",
            same),
    ]  # fmt: skip
    title = f"Checkpoint of {size / 1e9:.2f} GB per rank, {args.ranks} rank(s), fsync on"
    report(title, rows, raw={"ranks": ranks}, started_on=started_on, out=args.out)
    return int(not all(row.met is not False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
