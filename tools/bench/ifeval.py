"""IFEval's four accuracies of a model, greedy: prompt and instruction level, strict and loose.

    python tools/bench/ifeval.py --input input_data.jsonl --model FOLDER --out DIR
    python tools/bench/ifeval.py --input input_data.jsonl --model FOLDER --out DIR KEY=VALUE

--input is IFEval's file of 541 prompts. One response a prompt, drawn by `herl eval` at temperature
0 and judged by `herl score`. A response that its limit cuts off is judged as it stands, so the
limit belongs to the figures; DIR/accuracies.json holds both. Called again, a finished DIR is shown,
unless it was made of another model, file or settings, which is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from herl_megatron.commands.score.job import ScoreJob
from herl_megatron.data.smollm2 import sha256_of
from herl_megatron.files.run_files import EVALUATED
from tools.bench._out import json_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/smollm2_135m_stated_cpu.yaml"
LENGTHS = ("data.max_prompt_tokens=1024", "data.max_experience_tokens=2048",
           "rollout.max_response_tokens=384")  # fmt: skip
"""IFEval's longest prompt is far below 1,024 tokens; 384 tokens of response is what two cores can
draw in minutes."""
LEVELS = ("prompt_level", "instruction_level")
MODES = ("strict", "loose")
FOUR = tuple(f"{level}_{mode}" for mode in MODES for level in LEVELS)


def herl(*arguments: str | Path) -> None:
    """Run one command of `herl`, ended with this process.

    Raises:
        subprocess.CalledProcessError: it failed; its output says why.
    """
    command = [sys.executable, str(ROOT / "tools/_supervise.py"), sys.executable,
               "-m", "herl_megatron.cli", *map(str, arguments)]  # fmt: skip
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
             "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(ROOT)}  # fmt: skip
    subprocess.run(command, env=os.environ | quiet, cwd=ROOT, check=True)


def answered(rows: Path, rollouts: Path) -> Iterator[dict[str, Any]]:
    """The rows with the responses that an evaluation drew to them.

    Raises:
        ValueError: the evaluation lacks one of the rows.
    """
    drawn: dict[str, list[str]] = {}
    for group in json_lines(rollouts):
        drawn[group["prompt_id"]] = [one["text"] for one in group["rollouts"]]
    for row in json_lines(rows):
        if row["id"] not in drawn:
            raise ValueError(f"{rollouts} has no response to {row['id']} of {rows}")
        yield row | {"responses": drawn[row["id"]]}


def accuracies(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The four, by `prompt_level_strict` and so on, from `herl score`'s summary of each mode.

    Raises:
        ValueError: a response has no score, so that the share would be one of fewer prompts.
    """
    for mode, summary in summaries.items():
        if summary["unscored"]:
            raise ValueError(
                f"{summary['unscored']} of {summary['responses']} responses have no {mode} score:"
                f" {summary['unscored_by_reason']}"
            )
    shares = (summaries[mode][level]["share"] for mode in MODES for level in LEVELS)
    return dict(zip(FOUR, shares, strict=True))


def made_of(model: Path, source: Path, config: Path, settings: Sequence[str]) -> dict[str, Any]:
    """What accuracies are those of: by content, since a run that is trained again has its place."""
    files = sorted(path for path in model.iterdir() if path.is_file())
    hashes = "".join(f"{path.name} {sha256_of(path)}\n" for path in files)
    return {
        "model_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "input_sha256": sha256_of(source),
        "config": config.name,
        "settings": list(settings),
    }


def accuracies_of(
    model: Path, out: Path, source: Path, *, config: Path = CONFIG, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Rows, responses and verdicts in `out`; what its accuracies.json holds.

    out: not in the folder of a run: the evaluation is a run of its own there.

    Raises:
        ValueError: responses are missing or have no score; `out` holds those of something else.
        subprocess.CalledProcessError: a command failed.
    """
    out = out.resolve()
    done = out / "accuracies.json"
    settings = [*LENGTHS, *settings]
    made = made_of(model, source, config, settings)
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if other := [key for key, value in made.items() if found.get(key) != value]:
            raise ValueError(
                f"{done} was made with another {', '.join(other)}; give another folder or remove it"
            )
        return found
    herl("data", "ifeval", "--input", source.resolve(), "--out", out / "rows", "--overwrite")
    rows, drawn = out / "rows/eval.jsonl", out / "drawn"
    if drawn.exists():  # cut off: an evaluation begins anew
        shutil.rmtree(drawn)
    herl("eval", config, f"model.path={model.resolve()}", f"data.eval={rows}",
         f"run.dir={out}", f"run.name={drawn.name}", "eval.temperature=0",
         "eval.samples_per_prompt=1", *settings)  # fmt: skip
    rollouts = drawn / "rollouts/eval.jsonl"
    filled = [json.dumps(row) + "\n" for row in answered(rows, rollouts)]
    (out / "answered.jsonl").write_text("".join(filled), encoding="utf-8")
    summaries = {}
    for mode in MODES:
        job = ScoreJob(out / "answered.jsonl", out / f"{mode}.jsonl")
        herl("score", job.input, "--out", job.out, "--mode", mode)
        summaries[mode] = json.loads(job.summary.read_text(encoding="utf-8"))
    evaluated = json.loads((drawn / EVALUATED).read_text(encoding="utf-8"))
    content = {
        "prompts": len(filled),
        **accuracies(summaries),
        "response_tokens": evaluated["response_tokens"],
        **made,
    }
    done.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return content


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="IFEval's input_data.jsonl")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("set", nargs="*", metavar="KEY=VALUE", help="any setting")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 where it cannot be done."""
    options = parse_arguments()
    try:
        content = accuracies_of(
            options.model, options.out, options.input, config=options.config, settings=options.set
        )
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(content, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
