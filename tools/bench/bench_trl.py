r"""Plain RLVR and HeRL against TRL's GRPOTrainer on one CPU: equal model, prompts, lengths, steps.

    python3.11 -m venv /tmp/trl-venv          # TRL is needed by this bench alone
    /tmp/trl-venv/bin/pip install torch==2.13.0 trl==1.16.0 \
        pydantic nltk langdetect emoji syllapy regex
    python tools/bench/bench_trl.py --trl-python /tmp/trl-venv/bin/python \
        --model runs/quickstart/sft/policy --prompts runs/quickstart/toy/train.jsonl

Both sides: one precision, the same Hugging Face folder, the same prompts in the same order, one
optimizer step per generated batch, clip 0.2, no KL, Adam with one learning rate, sequence mean,
rewards from the same rule checks. TRL: the fastest of --trl-setups, processes under DDP (gloo)
times threads, found by a short run of each; generation by the model's own `generate`, because its
vLLM modes need a GPU (and its continuous batching, which runs on a CPU, was some 15 times slower
there: --continuous-batching). With --dtype bf16 TRL has the whole model in bf16, its fastest way;
here the optimizer keeps fp32 weights. Here: `herl train` with as many engines and data-parallel
ranks as --processes says, one thread each; engines and ranks take turns.

Compared is wall time from the first prompt to the end of the last step, the first step's warm-up
included; start-up is reported apart. Runs alternate. Rewards are printed for the reader to see that
both sides learn the same task; they need not be equal, since the samples differ. With `--hidden`
the model is a random one of that size: it hardly ever ends a response, so all have the same length
and TRL's padding costs it nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file

_HEAD_DIM = 64
_SIDES = ("rlvr", "herl")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Side:
    """One run: seconds before the first step and of all steps; tokens and mean reward by step."""

    start_s: float
    steps_s: float
    tokens: list[float]
    rewards: list[float]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the time of all steps, training included."""
        return sum(self.tokens) / self.steps_s


@dataclass(frozen=True)
class Setup:
    """How TRL runs: processes under DDP, each with so many threads."""

    processes: int
    threads: int

    @staticmethod
    def read(text: str) -> Setup:
        """`2x1`: two processes with one thread each."""
        processes, threads = map(int, text.split("x"))
        return Setup(processes, threads)

    def __str__(self) -> str:
        return f"{self.processes}x{self.threads}"


def run_trl(options: argparse.Namespace, scratch: Path, *, setup: Setup, steps: int) -> Side:
    """One run of `_trl_side.py` with TRL's interpreter."""
    settings = {
        "model": str(options.model.resolve()),
        "prompts": str(options.prompts.resolve()),
        "scratch": str(scratch / "trl"),
        "processes": setup.processes,
        "threads": setup.threads,
        "dtype": options.dtype,
        "steps": steps,
        "prompts_per_step": options.prompts_per_step,
        "group_size": options.group_size,
        "micro_batches": options.trl_micro_batches,
        "max_response_tokens": options.max_response_tokens,
        "lr": options.lr,
        "continuous_batching": options.continuous_batching,
    }
    script = ROOT / "tools/bench/_trl_side.py"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setup.processes}"]
    command = [
        str(options.trl_python), *(launch if setup.processes > 1 else []), str(script),
        json.dumps(settings),
    ]  # fmt: skip
    environment = {key: v for key, v in os.environ.items() if key not in ("PYTHONPATH",)}
    environment |= {"OMP_NUM_THREADS": str(setup.threads)}
    found = json.loads(_run(command, environment).splitlines()[-1])
    return Side(found["start_s"], found["train_s"], found["tokens"], found["rewards"])


def run_ours(options: argparse.Namespace, scratch: Path, *, hindsight: bool, steps: int) -> Side:
    """One `herl train`; its start-up is everything before the first rollout."""
    overrides = {
        "run.dir": scratch,
        "run.name": "ours",
        "run.overwrite": "true",
        "model.path": options.model.resolve(),
        "data.train": options.prompts.resolve(),
        "data.eval": "''",
        "data.shuffle": "false",
        "data.max_prompt_tokens": options.max_prompt_tokens,
        "data.max_experience_tokens": 2 * options.max_prompt_tokens + options.max_response_tokens,
        "rollout.replicas": options.processes,
        "rollout.dtype": options.dtype,
        "megatron.precision": options.dtype,
        "rollout.group_size": options.group_size,
        "rollout.max_response_tokens": options.max_response_tokens,
        "hindsight.enabled": str(hindsight).lower(),
        "train.steps": steps,
        "train.eval_every": 0,
        "train.prompts_per_step": options.prompts_per_step,
        "train.prompts_per_optimizer_step": options.prompts_per_step,
        "train.log_rollouts": "false",
        "train.export": "false",
        "optimizer.lr": options.lr,
        "optimizer.warmup_steps": 0,
        "megatron.tensor_parallel": 1,
        "megatron.data_parallel": options.processes,
        "checkpoint.every": 0,
        "parity.every": 0,
    }
    arguments = [f"{key}={value}" for key, value in overrides.items()] + options.ours
    config = str(ROOT / "configs/quickstart_cpu.yaml")
    herl = [str(ROOT / "tools/_supervise.py"), sys.executable, "-m", "herl_megatron.cli", "train"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    begun = time.perf_counter()
    _run([sys.executable, *herl, config, *arguments], environment)
    wall_s = time.perf_counter() - begun
    folder = scratch / "ours"
    seconds = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["seconds"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [values for values in map(json.loads, lines) if "rollout/tokens" in values]
    steps_s = seconds["total"] - seconds["start"]
    return Side(
        start_s=wall_s - steps_s,
        steps_s=steps_s,
        tokens=[values["rollout/tokens"] + values["rollout/revision_tokens"] for values in logged],
        rewards=[values["reward/mean"] for values in logged],
    )


def make_larger(options: argparse.Namespace, folder: Path) -> Path:
    """`--model` with random weights of another size, its tokenizer kept."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(options.model).save_pretrained(folder)
    config: Any = AutoConfig.from_pretrained(
        options.model, hidden_size=options.hidden, intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers, layer_types=["full_attention"] * options.layers,
        num_attention_heads=options.hidden // _HEAD_DIM, initializer_range=0.02,
        num_key_value_heads=options.hidden // _HEAD_DIM // 2, max_window_layers=options.layers,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[:3]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """TRL's best set-up by a short run each, then `--pairs` of TRL and our sides in turn."""
    tried = {
        setup: run_trl(options, scratch, setup=setup, steps=min(4, options.steps))
        for setup in (options.trl_setups if len(options.trl_setups) > 1 else [])
    }
    best = min(tried, key=lambda t: tried[t].steps_s) if tried else options.trl_setups[0]
    sides: dict[str, list[Side]] = {name: [] for name in ("trl", *options.sides)}
    for pair in range(options.pairs):
        sides["trl"].append(run_trl(options, scratch, setup=best, steps=options.steps))
        for name in options.sides:
            hindsight = name == "herl"
            one = run_ours(options, scratch, hindsight=hindsight, steps=options.steps)
            sides[name].append(one)
        took = ", ".join(f"{n} {own[-1].steps_s / options.steps:.2f}" for n, own in sides.items())
        said = f"pair {pair + 1} of {options.pairs}: s/step {took}"
        print(said, file=sys.stderr, flush=True)
    return {"trl_setup": best, "tried": tried, "sides": sides}


def summarize(measured: dict[str, Any], options: argparse.Namespace) -> list[Row]:
    """Speed over TRL with its goal, and what both sides did."""
    sides: dict[str, list[Side]] = measured["sides"]
    trl = [one.steps_s for one in sides["trl"]]
    tried = ", ".join(f"{s}: {own.steps_s:.1f} s" for s, own in measured["tried"].items())
    said = f"{measured['trl_setup']}" + (f" ({tried})" if tried else "")
    rows = [Row("TRL's processes x threads, the fastest tried", said)]
    for name in options.sides:
        goal = f">= {options.goal}x" if name == "rlvr" else ""
        speed = paired_ratio(trl, [one.steps_s for one in sides[name]])
        met = speed[0] >= options.goal if goal else None
        rows.append(Row(f"TRL's time over {name}'s, equal steps", interval_text(speed), goal, met))
        speed = paired_ratio(
            [one.tokens_per_s for one in sides[name]], [one.tokens_per_s for one in sides["trl"]]
        )
        rows.append(Row(f"generated tokens/s, {name} over TRL", interval_text(speed)))
    for name, own in sides.items():
        first, last = mean(s.rewards[0] for s in own), mean(s.rewards[-1] for s in own)
        said = (
            f"{mean(s.steps_s for s in own) / options.steps:.2f} s/step, "
            f"{mean(s.tokens_per_s for s in own):,.0f} tok/s, "
            f"start {mean(s.start_s for s in own):.0f} s, reward {first:.2f} -> {last:.2f}"
        )
        rows.append(Row(name, said))
    return rows


def main() -> None:
    """Parse the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--prompts", type=Path, required=True, help="canonical rows, rules only")
    parser.add_argument(
        "--hidden", type=int, default=0, help="random weights of this hidden size, times of 128"
    )
    parser.add_argument("--layers", type=int, default=6, help="with --hidden")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts-per-step", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-prompt-tokens", type=int, default=96)
    parser.add_argument("--max-response-tokens", type=int, default=48)
    parser.add_argument("--lr", type=float, default=4e-4)
    setups = [Setup(1, 1), Setup(1, 2), Setup(1, 4), Setup(2, 1)]
    parser.add_argument("--trl-setups", type=Setup.read, nargs="+", default=setups,
                        help="processes x threads, such as 2x1")  # fmt: skip
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--goal", type=float, default=1.0, help="TRL's time over plain RLVR's")
    parser.add_argument("--trl-micro-batches", type=int, default=1, help="of an optimizer step")
    parser.add_argument("--continuous-batching", action="store_true", help="TRL's, slow on a CPU")
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=list(_SIDES), help="ours")
    parser.add_argument("--processes", type=int, default=2, help="engines, and trainer ranks")
    parser.add_argument("--ours", nargs="*", default=[], help="further key=value of `herl train`")
    parser.add_argument("--out", type=new_file, help="JSON")
    options = parser.parse_args()
    started_on = machine()
    with tempfile.TemporaryDirectory() as scratch:
        if options.hidden:
            options.model = make_larger(options, Path(scratch) / "model")
        measured = measure(options, Path(scratch))
    raw = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "tried": {str(setup): asdict(side) for setup, side in measured["tried"].items()},
        "sides": {n: [asdict(one) for one in own] for n, own in measured["sides"].items()},
    }
    report("plain RLVR and HeRL here against TRL's GRPOTrainer", summarize(measured, options),
           raw=raw, started_on=started_on, out=options.out)  # fmt: skip


if __name__ == "__main__":
    main()
