"""HeRL against its baselines and ablations on the toy task, over seeds, at equal steps and tokens.

    python tools/bench/bench_arms.py --seeds 0 1 2 --runs runs/arms --out arms.json
    python tools/bench/bench_arms.py --arms rlvr herl --seeds 0       # one pair, about 5 minutes

Per seed one warm start (task, model, SFT), from which every arm trains with configs/
quickstart_cpu.yaml and what ARMS changes in it. A finished run or warm start is kept and not made
again, so an interrupted bench goes on where it was. `runs/quickstart`-like folders of earlier warm
starts (toy/ and sft/) may be copied to RUNS/seed0, RUNS/seed1, ...

Held-out numbers are compared twice. At equal steps: after `--steps`. At equal generated tokens:
each arm's held-out curve, linear between evaluations, at the number of tokens (first samples and
revisions) that the arm with the fewest had generated at its end; plain RLVR samples no revisions
and therefore trains `--extra-steps` longer, so that this number is not RLVR's own at `--steps`. So
does HiR, which samples 6 responses of a group of 8 and replays the other 2.
The curves of all runs go to RUNS/report (`herl report`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.table import Table

from tools.bench._bench import machine
from tools.bench._out import new_file

ROOT = Path(__file__).resolve().parents[2]
ARMS: dict[str, tuple[str, ...]] = {
    "rlvr": ("hindsight.enabled=false",),
    "naive_he": ("hindsight.prompt_style=naive", "hindsight.alpha=0"),
    "he": ("hindsight.alpha=0",),
    "herl": (),
    "herl_ctx_experience": ("hindsight.train_context=experience",),
    "herl_behavior_old": ("hindsight.behavior=old",),
    "hir": ("hindsight.method=replay", "hindsight.off_policy_loss=clip", "rollout.group_size=6"),
    "reference_compat": ("hindsight.reference_compat=true",),
}
_SAMPLES_NO_REVISIONS = ("rlvr", "hir")
_ATTEMPTS = 3  # Ray ends its workers when other processes fill the machine's memory
_WIDTH = 150
MEASURES = ("reward", "all_satisfied")


@dataclass(frozen=True)
class Curve:
    """One run: held-out numbers after `steps[i]` steps and `tokens[i]` generated tokens."""

    arm: str
    seed: int
    steps: list[int]
    tokens: list[float]
    reward: list[float]
    all_satisfied: list[float]
    revisions: float
    accepted: float
    gain: float | None
    clip_fraction: float | None

    def at_step(self, step: int, measure: str) -> float:
        """Measured after `step` steps."""
        return float(getattr(self, measure)[self.steps.index(step)])

    def at_tokens(self, tokens: float, measure: str) -> float:
        """Linear between evaluations; ValueError outside what was measured."""
        return interpolate(self.tokens, getattr(self, measure), tokens)


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The broken line through (xs, ys), `xs` rising, at `x`; never beyond its ends."""
    if not xs[0] <= x <= xs[-1]:
        raise ValueError(f"{x:g} is outside the measured range {xs[0]:g} .. {xs[-1]:g}")
    for index in range(1, len(xs)):
        if x <= xs[index]:
            share = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
            return ys[index - 1] + share * (ys[index] - ys[index - 1])
    return ys[-1]


def read_curve(folder: Path, *, arm: str, seed: int) -> Curve:
    """A finished run's folder; tokens count first samples and revisions, not evaluations."""
    by_step: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        by_step.setdefault(values["step"], {}).update(values)
    generated, total = {0: 0.0}, 0.0
    for step in sorted(by_step):
        values = by_step[step]
        if "rollout/tokens" in values:
            total += values["rollout/tokens"] + values["rollout/revision_tokens"]
            generated[step + 1] = total
    steps = [step for step in sorted(by_step) if "eval/reward" in by_step[step]]
    hindsight = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["hindsight"]
    clipped = [v["train/clip_fraction"] for v in by_step.values() if "train/clip_fraction" in v]
    return Curve(
        arm=arm,
        seed=seed,
        steps=steps,
        tokens=[generated[step] for step in steps],
        reward=[by_step[step]["eval/reward"] for step in steps],
        all_satisfied=[by_step[step]["eval/all_satisfied"] for step in steps],
        revisions=hindsight["revisions"],
        accepted=hindsight["accepted"],
        gain=hindsight["gain"],
        clip_fraction=mean(clipped) if clipped else None,
    )


def token_budgets(curves: Sequence[Curve]) -> dict[int, float]:
    """By seed, the tokens of the arm that had generated the fewest at its end."""
    seeds = sorted({curve.seed for curve in curves})
    return {seed: min(c.tokens[-1] for c in curves if c.seed == seed) for seed in seeds}


def compare(curves: Sequence[Curve], *, steps: int) -> dict[str, dict[str, dict[int, float]]]:
    """`{arm: {"reward at equal steps": {seed: value}, ...}}`."""
    budgets = token_budgets(curves)
    found: dict[str, dict[str, dict[int, float]]] = {}
    for curve in curves:
        columns = found.setdefault(curve.arm, {})
        for measure in MEASURES:
            at_step = curve.at_step(steps, measure)
            at_tokens = curve.at_tokens(budgets[curve.seed], measure)
            columns.setdefault(f"{measure} at equal steps", {})[curve.seed] = at_step
            columns.setdefault(f"{measure} at equal tokens", {})[curve.seed] = at_tokens
    return found


def spread_text(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean, and the sample standard deviation over seeds."""
    middle = f"{mean(values):+.3f}" if sign else f"{mean(values):.3f}"
    return f"{middle} +- {stdev(values):.3f}" if len(values) > 1 else middle


def print_tables(
    found: Mapping[str, Mapping[str, Mapping[int, float]]], curves: Sequence[Curve], base: str
) -> None:
    """Absolute numbers, differences to `base` seed by seed, and what hindsight did."""
    console = Console(width=_WIDTH)
    names = [f"{m} at equal {unit}" for unit in ("steps", "tokens") for m in MEASURES]
    table = Table(title="held-out prompts: mean +- standard deviation over seeds")
    titles = [name.replace(" at ", "\n").replace("_", " ") for name in names]
    for title in ("arm", "seeds", *titles):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm, columns in found.items():
        cells = [spread_text(list(columns[name].values())) for name in names]
        table.add_row(arm, str(len(columns[names[0]])), *cells)
    console.print(table)
    table = Table(title=f"minus {base}, same seed: mean +- standard deviation, each seed")
    for title in ("arm", *titles):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm, columns in found.items():
        if arm != base and base in found:
            table.add_row(arm, *(_difference(columns[n], found[base][n]) for n in names))
    console.print(table)
    table = Table(title="over the whole run, mean over seeds")
    for title in ("arm", "steps", "generated tokens", "revisions", "joined", "gain", "clipped"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm in found:
        own = [curve for curve in curves if curve.arm == arm]
        gains = [curve.gain for curve in own if curve.gain is not None]
        clipped = [c.clip_fraction for c in own if c.clip_fraction is not None]
        table.add_row(
            arm,
            str(own[0].steps[-1]),
            f"{mean(c.tokens[-1] for c in own):,.0f}",
            f"{mean(c.revisions for c in own):.0f}",
            f"{mean(c.accepted for c in own):.0f}",
            f"{mean(gains):+.3f}" if gains else "-",
            f"{mean(clipped):.4f}" if clipped else "-",
        )
    console.print(table)


def _difference(values: Mapping[int, float], base: Mapping[int, float]) -> str:
    differences = [values[seed] - base[seed] for seed in values if seed in base]
    each = " ".join(f"{value:+.2f}" for value in differences)
    return f"{spread_text(differences, sign=True)}\n{each}" if differences else "-"


def warm_start(runs: Path, seed: int) -> None:
    """The toy task and its SFT under RUNS/seedN, unless they are there."""
    folder = runs / f"seed{seed}"
    if not (folder / "toy" / "heldout.jsonl").is_file():
        _call(["tools/make_toy_task.py", "--out", f"{folder}/toy", "--seed", str(seed)], folder)
    if not (folder / "sft" / "policy" / "config.json").is_file():
        paths = [f"model.path={folder}/toy/model", f"sft.data={folder}/toy/sft.jsonl"]
        own = [f"run.seed={seed}", f"run.dir={folder}", "run.name=sft", "run.overwrite=true"]
        _herl("sft", "configs/quickstart_sft_cpu.yaml", [*own, *paths], folder)


def train_arm(runs: Path, arm: str, seed: int, *, steps: int, overrides: Sequence[str]) -> Path:
    """Train one arm from the seed's warm start, unless that run ended; returns its folder.

    A run that was cut off goes on from its newest checkpoint: that equals an uninterrupted one.
    """
    folder = runs / f"seed{seed}"
    if (folder / arm / "summary.json").is_file():
        return folder / arm
    if any((folder / arm / "checkpoints").glob("*")):
        config = str(folder / arm / "config.yaml")
        _herl("train", config, ["run.resume=true"], folder, log=arm)
        return folder / arm
    own = [f"run.seed={seed}", f"run.dir={folder}", f"run.name={arm}", f"train.steps={steps}"]
    own.append("run.resume=true")  # killed before its first checkpoint, it begins anew
    paths = [
        f"model.path={folder}/sft/policy",
        f"data.train={folder}/toy/train.jsonl",
        f"data.eval={folder}/toy/heldout.jsonl",
    ]
    changes = [*own, *paths, *ARMS[arm], *overrides]
    _herl("train", "configs/quickstart_cpu.yaml", changes, folder, log=arm)
    return folder / arm


def _herl(
    command: str, config: str, overrides: Sequence[str], folder: Path, *, log: str = ""
) -> None:
    herl = ["tools/_supervise.py", sys.executable, "-m", "herl_megatron.cli"]
    _call([*herl, command, config, *overrides], folder, log=log or command)


def _call(arguments: Sequence[str], folder: Path, *, log: str = "task") -> None:
    """Run a script of the repository; its output goes to FOLDER/LOG.log."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | quiet | own | {"PYTHONPATH": str(ROOT)}
    path = folder / f"{log}.log"
    with path.open("w", encoding="utf-8") as file:
        command = [sys.executable, *arguments]
        code = subprocess.call(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    if code:
        tail = "\n".join(path.read_text(encoding="utf-8").splitlines()[-5:])[-1500:]
        raise RuntimeError(f"{' '.join(arguments)} ended with {code}, see {path}:\n{tail}")


def run_all(options: argparse.Namespace, runs: Path) -> list[Curve]:
    """Every arm of every seed, `--jobs` at a time, seeds first; a failed run is named, not kept."""
    overrides = [
        f"train.eval_every={options.eval_every}",
        f"eval.samples_per_prompt={options.eval_samples}",
        "train.log_rollouts=true",
        *options.set,
    ]

    def one(job: tuple[int, str]) -> Curve | None:
        seed, arm = job
        steps = options.steps + options.extra_steps * (arm in _SAMPLES_NO_REVISIONS)
        for _ in range(_ATTEMPTS):
            try:
                folder = train_arm(runs, arm, seed, steps=steps, overrides=overrides)
                break
            except RuntimeError as error:
                print(f"seed {seed}, {arm}: {error}", file=sys.stderr, flush=True)
        else:
            return None
        curve = read_curve(folder, arm=arm, seed=seed)
        print(f"seed {seed}, {arm}: {curve.reward[-1]:.3f} {curve.all_satisfied[-1]:.3f}")
        return curve

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: warm_start(runs, seed), options.seeds))
        jobs = [(seed, arm) for seed in options.seeds for arm in options.arms]
        return [curve for curve in pool.map(one, jobs) if curve is not None]


def write_report(runs: Path, curves: Sequence[Curve]) -> None:
    """`herl report` over the runs, grouped by arm."""
    folders = [str(runs / f"seed{c.seed}" / c.arm) for c in sorted(curves, key=_arm_order)]
    _herl_report = [*folders, "--out", str(runs / "report"), "--samples", "1"]
    _call(["-m", "herl_megatron.cli", "report", *_herl_report], runs, log="report")


def _arm_order(curve: Curve) -> tuple[int, int]:
    return list(ARMS).index(curve.arm), curve.seed


def main() -> int:
    """Parse the arguments, train what is missing, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--extra-steps", type=int, default=15, help="for RLVR and HiR")
    parser.add_argument("--eval-every", type=int, default=5, help="a divisor of --steps")
    parser.add_argument("--eval-samples", type=int, default=4, help="per held-out prompt")
    parser.add_argument("--set", nargs="+", default=[], help="further KEY=VALUE of every arm")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, two cores each")
    parser.add_argument("--out", type=new_file, help="JSON")
    options = parser.parse_args()
    if options.steps % options.eval_every:
        parser.error(f"--eval-every {options.eval_every} does not divide --steps {options.steps}")
    started_on = machine()
    runs = options.runs.resolve()
    curves = run_all(options, runs)
    if not curves:
        return 1
    found = compare(curves, steps=options.steps)
    print_tables(found, curves, base="rlvr")
    write_report(runs, curves)
    if options.out is not None:
        content = {
            "machine": started_on,
            "steps": options.steps,
            "token_budgets": token_budgets(curves),
            "results": found,
            "runs": [asdict(curve) for curve in curves],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if len(curves) == len(options.seeds) * len(options.arms) else 1


if __name__ == "__main__":
    sys.exit(main())
