"""SmolLM2-135M-Instruct, before and after training: runs, one JSON per run, the page's table.

    python tools/bench/real_model.py show runs/real_model/unstated-seed0
    python tools/bench/real_model.py run --model MODEL --task unstated --arm herl --seed 0
    python tools/bench/real_model.py table docs/results docs/real_model.md

`run` makes the prompts, trains one arm (finished or cut off runs are gone on with) and writes its
JSON into --out. Standard errors are of the mean over the held-out samples, clustered by prompt:
samples of one prompt are not independent. `table` writes the page's results anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from herl_megatron.observability.versions import package_versions
from tools.bench._out import json_lines
from tools.bench.bench_arms import interpolate
from tools.bench.ifeval import FOUR, accuracies_of, herl

ROOT = Path(__file__).resolve().parents[2]
ARMS: Mapping[str, tuple[str, ...]] = {
    "rlvr": ("hindsight.enabled=false",),
    "herl": (),
    "herl_gamma_1e-3": ("hindsight.gamma=0.001",),
    "herl_criteria": ("hindsight.prompt_style=criteria",),
    "herl_rubric": ("hindsight.prompt_style=rubric",),
    "herl_guided": ("hindsight.prompt_style=guided",),
    "herl_guided_missed": ("hindsight.prompt_style=guided_missed",),
    "he": ("hindsight.alpha=0",),
    "naive_he": ("hindsight.prompt_style=naive", "hindsight.alpha=0"),
}
MEASURES = ("reward", "all_satisfied")
_CHECK = "eval/check/"
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

Samples = Mapping[str, Sequence[float]]
"""One number per sample, by prompt."""


def clustered(samples: Samples) -> tuple[float, float | None]:
    """Mean over all samples and its standard error, the prompts being the independent draws.

    With residual sums e_c of C prompts and N samples: sqrt(C / (C - 1) * sum e_c^2) / N. None for
    one prompt, which says nothing about others.

    Raises:
        ValueError: no sample.
    """
    values = [value for drawn in samples.values() for value in drawn]
    if not values:
        raise ValueError("there is no scored held-out sample")
    middle, count = mean(values), len(samples)
    if count < 2:
        return middle, None
    residuals = [sum(value - middle for value in drawn) for drawn in samples.values()]
    total = sum(residual**2 for residual in residuals)
    return middle, (count / (count - 1) * total) ** 0.5 / len(values)


def change(before: Samples, after: Samples) -> tuple[float, float | None]:
    """Mean change and its standard error: the same prompts before and after, paired by prompt.

    Raises:
        ValueError: the two have other prompts.
    """
    if set(before) != set(after):
        raise ValueError("before and after were measured on different prompts")
    return clustered({name: [mean(after[name]) - mean(before[name])] for name in before})


def read_samples(folder: Path, step: int) -> dict[str, Samples]:
    """MEASURES of the scored samples of the evaluation after `step` steps."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in MEASURES}
    path = folder / "rollouts" / f"eval_{step:06d}.jsonl"
    for group in json_lines(path):
        scored = [one for one in group["rollouts"] if one["reward"] is not None]
        if scored:
            whole = [float(bool(one["satisfied"]) and not one["unmet"]) for one in scored]
            found["reward"][group["prompt_id"]] = [float(one["reward"]) for one in scored]
            found["all_satisfied"][group["prompt_id"]] = whole
    return {name: samples for name, samples in found.items()}


def read_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """metrics.jsonl by step."""
    by_step: dict[int, dict[str, float]] = {}
    for values in json_lines(folder / "metrics.jsonl"):
        by_step.setdefault(int(values["step"]), {}).update(values)
    return by_step


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Held-out numbers with standard errors after so many steps and generated tokens (first samples
    and revisions, evaluations left out)."""
    tokens = {0: 0}
    by_step = read_metrics(folder)
    for step in sorted(by_step):
        values = by_step[step]
        if "rollout/tokens" in values:
            drawn = values["rollout/tokens"] + values["rollout/revision_tokens"]
            tokens[step + 1] = tokens[step] + int(drawn)
    found = []
    for path in sorted((folder / "rollouts").glob("eval_*.jsonl")):
        step = int(path.stem.removeprefix("eval_"))
        samples = read_samples(folder, step)
        row: dict[str, Any] = {"step": step, "tokens": tokens[step],
                               "samples": sum(map(len, samples["reward"].values()))}  # fmt: skip
        for name in MEASURES:
            row[name], row[f"{name}_se"] = clustered(samples[name])
        measured = by_step[step].items()
        row["response_tokens"] = by_step[step]["eval/response_tokens"]
        row["checks"] = {n.removeprefix(_CHECK): v for n, v in measured if n.startswith(_CHECK)}
        found.append(row)
    return found


def revised_checks(folder: Path) -> dict[str, list[float]]:
    """By check the share of drafts and of their revisions that pass it, over all steps."""
    passed: dict[str, list[tuple[bool, bool]]] = {}
    for path in sorted((folder / "rollouts").glob("step_*.jsonl")):
        for group in json_lines(path):
            for revision in group["revisions"]:
                draft = group["rollouts"][revision["parent"]]
                for criterion in group["criteria"]:
                    pair = tuple(criterion["id"] in one["satisfied"] for one in (draft, revision))
                    passed.setdefault(criterion["check"], []).append((pair[0], pair[1]))
    return {
        check: [mean(float(pair[side]) for pair in pairs) for side in (0, 1)]
        for check, pairs in passed.items()
    }


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run came to; no paths of this machine.

    Raises:
        ValueError: the run has not ended.
    """
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder} has no summary.json: the run has not ended")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    evaluations = read_evaluations(folder)
    first, last = (evaluations[end]["step"] for end in (0, -1))
    before, after = read_samples(folder, first), read_samples(folder, last)
    changes: dict[str, float | None] = {}
    for name in MEASURES:
        changes[name], changes[f"{name}_se"] = change(before[name], after[name])
    steps = [v for v in read_metrics(folder).values() if "time/total_s" in v]
    hindsight = summary["hindsight"]
    revisions = hindsight["revisions"]
    return {
        "steps": summary["steps"],
        "prompts": len(before["reward"]),
        "evaluations": evaluations,
        "change": changes,
        "hindsight": {
            "experiences": hindsight["experiences"],
            "revisions": revisions,
            "joined": hindsight["accepted"],
            "joined_share": hindsight["accepted"] / revisions if revisions else None,
            "gain": hindsight["gain"],
            "checks": revised_checks(folder),
        },
        "seconds": {
            "step_mean": mean(v["time/total_s"] for v in steps) if steps else None,
            "rollout_mean": mean(v["time/rollout_s"] for v in steps) if steps else None,
            "train_mean": mean(v["time/train_s"] for v in steps) if steps else None,
            "run": summary["seconds"]["total"],
        },
        "generated_tokens": evaluations[-1]["tokens"],
    }


def show(folder: Path) -> str:
    """Before and after, for people; which way it went is theirs to judge."""
    run = read_run(folder)
    first, last = run["evaluations"][0], run["evaluations"][-1]
    lines = [
        f"held-out prompts {run['prompts']}, samples {last['samples']}, steps {run['steps']}, "
        "mean +- standard error clustered by prompt"
    ]
    for name, title in zip(MEASURES, ("mean reward", "all satisfied"), strict=True):
        cells = [with_error(one[name], one[f"{name}_se"]) for one in (first, last)]
        moved = with_error(run["change"][name], run["change"][f"{name}_se"], sign=True)
        lines.append(f"  {title:<14} before {cells[0]}   after {cells[1]}   change {moved}")
    hindsight = run["hindsight"]
    if hindsight["revisions"]:
        gain = "-" if hindsight["gain"] is None else f"{hindsight['gain']:+.3f}"
        lines.append(
            f"  revisions {hindsight['revisions']:.0f}, joined {hindsight['joined_share']:.0%}, "
            f"mean gain over the draft {gain}"
        )
    lines.append("A change within two standard errors is no evidence of one; seeds differ as well.")
    return "\n".join(lines)


def with_error(value: float, error: float | None, *, sign: bool = False) -> str:
    """`0.123 +- 0.045`."""
    shown = f"{value:+.3f}" if sign else f"{value:.3f}"
    return shown if error is None else f"{shown} +- {error:.3f}"


def cpu() -> dict[str, Any]:
    """Cores, the flags that decide about speed in bf16, and how busy the machine is."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = set((re.search(r"^flags\s*: (.*)$", text, re.MULTILINE) or ["", ""])[1].split())
    return {
        "model": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "load_1min": os.getloadavg()[0],
    }


def commit() -> str:
    """Of the working tree; `+` after it where something tracked was changed."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    return head + ("+" if changed else "")


def train(options: argparse.Namespace) -> Path:
    """Train one arm of one seed unless that run has ended; its folder.

    Raises:
        subprocess.CalledProcessError: a command failed; its output says why.
    """
    runs: Path = options.runs.resolve()
    data = runs / f"{options.task}-seed{options.seed}"
    folder = runs / f"{options.task}-{options.arm}-seed{options.seed}"
    if not (data / "heldout.jsonl").is_file():
        herl("tasks", options.task, "--seed", str(options.seed), "--out", data, "--overwrite")
    if not (folder / "summary.json").is_file():
        settings = [
            f"run.dir={runs}", f"run.name={folder.name}", f"run.seed={options.seed}",
            f"model.path={options.model.resolve()}", f"data.train={data}/train.jsonl",
            f"data.eval={data}/heldout.jsonl", "run.resume=true",
            f"train.export={str(options.ifeval is not None).lower()}",
            *ARMS[options.arm], *options.set,
        ]  # fmt: skip
        herl("train", ROOT / f"configs/smollm2_135m_{options.task}_cpu.yaml", *settings)
    return folder


def measure(options: argparse.Namespace) -> Path:
    """Train, and write the run's JSON; returns its path."""
    before, made_by = cpu(), commit()
    folder = train(options)
    weights = options.model / "weights.json"
    content = {
        "task": options.task,
        "arm": options.arm,
        "seed": options.seed,
        "settings": [*ARMS[options.arm], *options.set],
        "config": f"configs/smollm2_135m_{options.task}_cpu.yaml",
        "commit": made_by,
        "weights": json.loads(weights.read_text()) if weights.is_file() else "unknown",
        "versions": dict(package_versions()),
        "cpu": before,
        **read_run(folder),
    }
    if options.ifeval:
        # Beside the run, for an evaluation is a run, and none may lie in another's folder.
        after = folder.with_name(f"ifeval-{folder.name}")
        content["ifeval"] = {
            "before": accuracies_of(options.model, options.runs / "ifeval-before", options.ifeval),
            "after": accuracies_of(folder / "policy", after, options.ifeval),
        }
    out: Path = options.out / f"{folder.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return out


def at_tokens(run: Mapping[str, Any], tokens: float, name: str) -> float:
    """The held-out curve at so many generated tokens, linear between evaluations."""
    evaluations = run["evaluations"]
    xs = [one["tokens"] for one in evaluations]
    return interpolate(xs, [one[name] for one in evaluations], tokens)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page's results: every run, then each arm against RLVR of the same task and seed."""
    head = ("task", "arm", "seed", "steps", "reward before", "reward after", "all satisfied after",
            "joined", "gain", "tokens", "s/step")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    order = sorted(runs, key=lambda run: (run["task"], list(ARMS).index(run["arm"]), run["seed"]))
    for run in order:
        first, last, hindsight = run["evaluations"][0], run["evaluations"][-1], run["hindsight"]
        revised = bool(hindsight["revisions"])
        joined = (
            f"{hindsight['joined']:.0f} of {hindsight['revisions']:.0f} "
            f"({hindsight['joined_share']:.0%})" if revised else "-"
        )  # fmt: skip
        cells = (
            run["task"], run["arm"], run["seed"], run["steps"],
            with_error(first["reward"], first["reward_se"]),
            with_error(last["reward"], last["reward_se"]),
            with_error(last["all_satisfied"], last["all_satisfied_se"]),
            joined, f"{hindsight['gain']:+.3f}" if revised else "-",
            f"{run['generated_tokens']:,}", f"{run['seconds']['step_mean']:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    further = (_against_rlvr(order), _ifeval(order), _checks(order))
    return "\n\n".join("\n".join(part) for part in (lines, *further) if part)


def _checks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What moved: the share of held-out responses that pass each check, and their length; and what
    revisions in training had before their drafts."""
    head = ("task", "arm", "seed", "tokens a response", "passed, before -> after",
            "passed by drafts -> by their revisions")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for run in runs:
        first, last = run["evaluations"][0], run["evaluations"][-1]
        moved = ", ".join(
            f"{name.split(':')[-1]} {first['checks'][name]:.2f} -> {share:.2f}"
            for name, share in last["checks"].items()
        )
        told = ", ".join(
            f"{name.split(':')[-1]} {draft:.2f} -> {revision:.2f}"
            for name, (draft, revision) in run["hindsight"]["checks"].items()
        )
        length = f"{first['response_tokens']:.0f} -> {last['response_tokens']:.0f}"
        cells = (run["task"], run["arm"], run["seed"], length, moved, told or "-")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _against_rlvr(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out reward minus that of RLVR, paired by seed; at equal tokens: where the run that
    generated fewer had ended."""
    head = ("task", "arm", "seeds", "minus RLVR at equal steps", "at equal generated tokens")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    base = {(run["task"], run["seed"]): run for run in runs if run["arm"] == "rlvr"}
    for task, arm in dict.fromkeys((run["task"], run["arm"]) for run in runs):
        pairs = [
            (run, base[task, run["seed"]])
            for run in runs
            if (run["task"], run["arm"]) == (task, arm) and (task, run["seed"]) in base
        ]
        if arm == "rlvr" or not pairs:
            continue
        steps, tokens = [], []
        for one, other in pairs:
            if one["steps"] == other["steps"]:
                steps.append(one["evaluations"][-1]["reward"] - other["evaluations"][-1]["reward"])
            budget = min(one["generated_tokens"], other["generated_tokens"])
            tokens.append(at_tokens(one, budget, "reward") - at_tokens(other, budget, "reward"))
        cells = (task, arm, len(pairs), _over_seeds(steps), _over_seeds(tokens))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _ifeval(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """IFEval before and after, of the runs that were measured on it."""
    head = ("task", "arm", "seed", "prompts", *(name.replace("_", " ") for name in FOUR))
    measured = [run for run in runs if "ifeval" in run]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)] if measured else []
    for run in measured:
        before, after = run["ifeval"]["before"], run["ifeval"]["after"]
        moved = (f"{before[name]:.3f} -> {after[name]:.3f}" for name in FOUR)
        cells = (run["task"], run["arm"], run["seed"], after["prompts"], *moved)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _over_seeds(differences: Sequence[float]) -> str:
    """Each seed's, then mean and standard error over seeds."""
    if not differences:
        return "-"
    each = " ".join(f"{value:+.3f}" for value in differences)
    if len(differences) < 2:
        return each
    error = stdev(differences) / len(differences) ** 0.5
    return f"{with_error(mean(differences), error, sign=True)} ({each})"


def write_table(results: Path, page: Path) -> None:
    """Replace what stands between BEGIN and END in the page.

    Raises:
        ValueError: the page has no such place, or there are no results.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    text = page.read_text(encoding="utf-8")
    if not runs or BEGIN not in text or END not in text:
        raise ValueError(f"{results} needs at least one .json, {page} the marks {BEGIN} and {END}")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{table(runs)}\n{END}{tail}", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="a run's held-out numbers with standard errors")
    shown.add_argument("folder", type=Path)
    one = commands.add_parser("run", help="train one arm and write its JSON")
    one.add_argument("--model", type=Path, required=True, help="made by tools/fetch_smollm2.py")
    one.add_argument("--task", choices=("stated", "unstated"), default="unstated")
    one.add_argument("--arm", choices=list(ARMS), required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--runs", type=Path, default=Path("runs/real_model"))
    one.add_argument("--out", type=Path, default=ROOT / "docs/results")
    one.add_argument("--ifeval", type=Path, help="IFEval's file of prompts: its four accuracies"
                     " before and after as well")  # fmt: skip
    one.add_argument("set", nargs="*", metavar="KEY=VALUE", help="any setting")
    tables = commands.add_parser("table", help="write the page's results anew")
    tables.add_argument("results", type=Path)
    tables.add_argument("page", type=Path)
    return parser.parse_args()


def main() -> int:
    """Do what was asked; 1 where it cannot be done."""
    options = parse_arguments()
    try:
        match options.command:
            case "show":
                print(show(options.folder))
            case "run":
                print(measure(options))
            case "table":
                write_table(options.results, options.page)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
