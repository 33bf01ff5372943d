"""A HeRL step over a plain RLVR step of equal train rows, and streaming over barriers.

    python tools/bench/bench_step.py                       # about 4 minutes
    python tools/bench/bench_step.py --cycles 24 --out step.json

A step is the rollout phase (a real vLLM engine, the real pipeline) and the training of its rows (a
real Megatron rank); the weight sync is left out, it is the same for both. Controlled are:
- lengths: lognormal (--median, sigma 1, cut at --longest), by a seed from the cycle and the
  request, so that every variant of a cycle samples the same lengths; no response ends earlier;
- the share of rollouts that get a revision: the scorer lets no first sample meet its rubric, and
  `max_experiences` of each group are revised. Scores are seeded and differ within a group, so RLVR
  and HeRL train on the same number of rows;
- scoring time: none, or with `judge` one call per response, lognormal (sigma 0.5) around
  --judge-share of the RLVR rollout phase, for a judge with room for all calls at once.
Half of the rollouts fit into the engine at a time (--slots). Variants run in turns, their order
rotating from cycle to cycle; ratios are medians over cycles with a bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from herl_megatron.engine import EngineConfig
from herl_megatron.rollout.vllm.engine_environment import engine_environment

os.environ.update(engine_environment(device="cpu", threads=1))  # before torch and vllm

from herl_megatron.batching.rows import build_train_batch
from herl_megatron.cluster.placement import demand
from herl_megatron.cluster.reserve import reserve
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.config.schema import (
    Config,
    DataConfig,
    HindsightConfig,
    MegatronConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
)
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.toy_model import write_model_folder
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import Completion, GenerateRequest, IntArray
from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file
from tools.bench._stubs import CRITERIA, PROMPT_WORDS, StubScorer, Variant, length_of, make_prompts

_POSITIONS = 8192


@dataclass(frozen=True)
class Measured:
    """One step: seconds of its two phases, tokens and rows.

    rollout_cpu_s: CPU time of this process, which holds engine and pipeline, in the rollout phase:
        without judge time it is busy all the time, and other processes disturb this number less.
    """

    rollout_s: float
    rollout_cpu_s: float
    train_s: float
    first_tokens: int
    revision_tokens: int
    engine_tokens: int
    rows: int
    exposed_s: float

    @property
    def step_s(self) -> float:
        """Both phases."""
        return self.rollout_s + self.train_s


class FixedLengthEngine(VLLMEngine):
    """The engine with each request's own seeded length; counts the tokens that it gives."""

    def __init__(self, config: EngineConfig, *, seed: int, longest: int, middle: float) -> None:
        super().__init__(config)
        self.cycle = 0
        self.tokens = 0
        self._seed, self._longest, self._median = seed, longest, middle

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Sample with lengths that depend on the cycle and the request's id alone."""
        cut = [
            replace(r, sampling=replace(r.sampling, max_tokens=self._length(r.request_id)))
            for r in requests
        ]
        completions = await super().generate(cut)
        self.tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def _length(self, request_id: str) -> int:
        seed = (self._seed, self.cycle)
        return length_of(request_id, seed=seed, middle=self._median, longest=self._longest)


class SameLengthTokenizer(ChatTokenizer):
    """Random tokens are no text: a response decodes to as many known words as it has tokens."""

    def decode(self, ids: IntArray) -> str:
        """` stone stone ...`, one token a word."""
        return " stone" * len(ids)


class Bench:
    """Engine, trainer and tokenizer, and one measured step at a time."""

    def __init__(
        self, options: argparse.Namespace, config: Config, engine: FixedLengthEngine,
        trainer: TrainerGroup,
    ) -> None:  # fmt: skip
        self._options, self._config = options, config
        self._engine, self._trainer = engine, trainer
        self._tokenizer = SameLengthTokenizer(config.model.path)

    async def step(self, variant: Variant, index: int, cycle: int, judge_s: float) -> Measured:
        """Rollouts and training of one variant in one cycle."""
        options = self._options
        hindsight = HindsightConfig(
            enabled=variant.revised > 0,
            select="all_failed",
            max_experiences=max(1, variant.revised),
        )
        rollout = self._config.rollout.model_copy(update={"streamed": variant.streamed})
        scorer = StubScorer(
            seed=(options.seed, cycle), judge_s=judge_s if variant.judge else 0.0,
            concurrency=options.prompts * options.group,
        )  # fmt: skip
        pipeline = RolloutPipeline(
            [self._engine], scorer, self._tokenizer, rollout,
            open_stage(
                hindsight, rollout, max_tokens=self._config.data.max_experience_tokens
            ),
            seed=options.seed,
        )  # fmt: skip
        prompts = make_prompts(options.prompts, cycle=cycle, variant=index)
        self._engine.cycle, self._engine.tokens = cycle, 0
        start, start_cpu = time.perf_counter(), time.process_time()
        groups = await pipeline.run(prompts, step=0)
        rollout_s = time.perf_counter() - start
        rollout_cpu_s = time.process_time() - start_cpu
        rows = build_train_batch(
            groups, hindsight, self._config.algorithm, run_seed=options.seed, step=cycle,
            prompts_per_optimizer_step=self._config.train.prompts_per_optimizer_step,
        )  # fmt: skip
        await self._trainer.train_step(rows.batch, step=0)
        stats = pipeline.stats
        assert stats is not None, "the pipeline has run"
        assert sum(len(g.revisions) for g in groups) == options.prompts * variant.revised
        return Measured(
            rollout_s=rollout_s,
            rollout_cpu_s=rollout_cpu_s,
            train_s=time.perf_counter() - start - rollout_s,
            first_tokens=stats.rollout_tokens,
            revision_tokens=stats.revision_tokens,
            engine_tokens=self._engine.tokens,
            rows=len(rows.batch.rows),
            exposed_s=stats.scoring_exposed_s,
        )


def variants_for(group: int) -> list[Variant]:
    """RLVR, HeRL by revision share, and the barrier schedule; the last three with a judge."""
    return [
        Variant("rlvr", 0),
        Variant("herl 1/8", group // 8),
        Variant("herl 1/8 barriers", group // 8, streamed=False),
        Variant("herl 1/4", group // 4),
        Variant("herl 1/1", group),
        Variant("rlvr judge", 0, judge=True),
        Variant("herl 1/8 judge", group // 8, judge=True),
        Variant("herl 1/8 judge barriers", group // 8, streamed=False, judge=True),
    ]


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Measured]]:
    """All cycles after one that warms up; by variant name."""
    config = make_config(options, folder)
    variants = variants_for(options.group)
    measured: dict[str, list[Measured]] = {variant.name: [] for variant in variants}
    async with AsyncExitStack() as stack:
        stack.enter_context(ray_session(config.cluster))
        steps = (options.cycles + 1) * len(variants)
        reservation = reserve(
            demand(config.megatron, None), device="cpu",
            start_timeout_s=config.cluster.start_timeout_s,
        )  # fmt: skip
        trainer = await start_trainer(
            trainer_sections(config, purpose="train"), slots=reservation.placement.trainer,
            device="cpu", optimizer_steps=2 * steps,
        )  # fmt: skip
        stack.callback(trainer.stop)
        tokenizer_limit = config.data.max_experience_tokens + options.longest
        engine = FixedLengthEngine(
            EngineConfig(
                model_path=str(folder), dtype="float32", max_model_tokens=tokenizer_limit,
                max_num_seqs=options.slots, kv_cache_bytes=512 << 20, gpu_memory_utilization=0.3,
                tensor_parallel=1, device="cpu",
            ),
            seed=options.seed, longest=options.longest, middle=options.median,
        )  # fmt: skip
        stack.push_async_callback(engine.shutdown)
        bench = Bench(options, config, engine, trainer)
        judge_s = 0.0
        for cycle in range(options.cycles + 1):
            turn = cycle % len(variants)
            for index in [*range(turn, len(variants)), *range(turn)]:
                variant = variants[index]
                one = await bench.step(variant, index, cycle, judge_s)
                if cycle:
                    measured[variant.name].append(one)
                elif variant.revised == 0 and not variant.judge:
                    judge_s = options.judge_share * one.rollout_s
            print(f"cycle {cycle} of {options.cycles}", file=sys.stderr, flush=True)
    return measured


def write_model(folder: Path, *, seed: int) -> None:
    """The toy task's random model, allowed to be long enough for revision prompts."""
    write_model_folder(folder, seed=seed)
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["max_position_embeddings"] = _POSITIONS
    file.write_text(json.dumps(values), encoding="utf-8")


def make_config(options: argparse.Namespace, folder: Path) -> Config:
    """The toy task's small model, one trainer rank, two optimizer steps per step."""
    experience = options.longest + 12 * CRITERIA + 2 * PROMPT_WORDS + 64
    return Config(
        model=ModelConfig(path=str(folder)),
        data=DataConfig(max_prompt_tokens=experience, max_experience_tokens=experience),
        rollout=RolloutConfig(
            group_size=options.group, max_response_tokens=options.longest, dtype="fp32",
            max_num_seqs=options.slots, timeout_s=300,
        ),
        train=TrainConfig(
            steps=1, prompts_per_step=options.prompts,
            prompts_per_optimizer_step=options.prompts // 2,
        ),
        megatron=MegatronConfig(precision="fp32", micro_batch_tokens=4096),
    )  # fmt: skip


def phase_rows(what: str, ratio: Callable[[str], tuple[float, float, float]]) -> list[Row]:
    """The rollout phase by the clock and in CPU time; `ratio` takes a field of `Measured`."""
    return [
        Row(f"{what}: rollout phase alone", interval_text(ratio("rollout_s"))),
        Row(f"{what}: rollout phase, CPU time", interval_text(ratio("rollout_cpu_s"))),
    ]


def summarize(measured: dict[str, list[Measured]], seed: int) -> list[Row]:
    """Ratios with their goals; counts are exact."""

    def ratio(a: str, b: str, field: str) -> tuple[float, float, float]:
        over = [getattr(one, field) for one in measured[a]]
        return paired_ratio(over, [getattr(one, field) for one in measured[b]], seed)

    base = measured["rlvr"]
    share = median(one.rollout_s / one.step_s for one in base)
    rows = [Row("rollout share of an RLVR step", f"{share:.2f}")]
    for name, other, goal in (
        ("herl 1/8", "rlvr", 1.25),
        ("herl 1/4", "rlvr", 1.35),
        ("herl 1/1", "rlvr", None),
        ("herl 1/8 judge", "rlvr judge", 1.25),
    ):
        what = f"{name} over {other}"
        step = ratio(name, other, "step_s")
        said = (f"<= {goal}x", step[0] <= goal) if goal else ("", None)
        rows.append(Row(f"{what}: step", interval_text(step), *said))
        rows += phase_rows(what, partial(ratio, name, other))
    for judge in ("", " judge"):
        name, other = f"herl 1/8{judge} barriers", f"herl 1/8{judge}"
        what = f"{name} over stream"
        rows.append(Row(f"{what}: step", interval_text(ratio(name, other, "step_s"))))
        phase, cpu = phase_rows(what, partial(ratio, name, other))
        met = ratio(name, other, "rollout_s")[0] >= 1.15
        rows += [replace(phase, goal=">= 1.15x", met=met), *([] if judge else [cpu])]
    herl = measured["herl 1/8"]
    same = all(a.first_tokens == b.first_tokens for a, b in zip(base, herl, strict=True))
    counted = all(
        one.engine_tokens == one.first_tokens + one.revision_tokens
        for own in measured.values()
        for one in own
    )
    extra = sum(one.revision_tokens for one in herl) / sum(one.first_tokens for one in herl)
    rows.append(Row("extra tokens at 1/8, of the first samples' tokens", f"{extra:.3f}"))
    rows.append(
        Row("first samples as RLVR's, all else revisions", str(same and counted), "True",
            same and counted)
    )  # fmt: skip
    trained = {one.rows for own in measured.values() for one in own}
    rows.append(Row("train rows of every step", str(sorted(trained)), "one number",
                    len(trained) == 1))  # fmt: skip
    return rows


def main() -> None:
    """Parse the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=12, help="one more warms up")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8, help="a multiple of 8")
    parser.add_argument("--slots", type=int, default=64, help="sequences decoded together")
    parser.add_argument("--median", type=float, default=32, help="tokens of a response")
    parser.add_argument("--longest", type=int, default=218, help="tokens of a response")
    parser.add_argument("--judge-share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="JSON")
    options = parser.parse_args()
    if options.group % 8:
        parser.error(f"--group {options.group} is no multiple of 8, the smallest revision share")
    started_on = machine()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), seed=options.seed)
        measured = asyncio.run(measure(options, Path(folder)))
    raw: dict[str, Any] = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "steps": {name: [vars(one) for one in own] for name, own in measured.items()},
    }
    report("HeRL step over RLVR step", summarize(measured, options.seed), raw=raw,
           started_on=started_on, out=options.out)  # fmt: skip


if __name__ == "__main__":
    main()
