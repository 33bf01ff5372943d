"""IFEval's four accuracies of a model, greedy: prompt and instruction level, strict and loose.

    python tools/bench/ifeval.py --input input_data.jsonl --model FOLDER --out DIR
    python tools/bench/ifeval.py --input input_data.jsonl --model FOLDER --out DIR KEY=VALUE

--input is IFEval's file of 541 prompts. One response a prompt, drawn and judged by `herl eval` at
temperature 0. A response that its limit cuts off is judged as it stands, so the
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from herl_megatron.data.smollm2 import sha256_of
from herl_megatron.files.run_files import EVALUATED

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/smollm2_135m_stated_cpu.yaml"
LENGTHS = ("data.max_prompt_tokens=1024", "data.max_experience_tokens=2048",
           "rollout.max_response_tokens=384")  # fmt: skip
"""IFEval's longest prompt is far below 1,024 tokens; 384 tokens of response is what two cores can
draw in minutes."""
FOUR = {
    f"{level}_level_{mode}": f"{level}_{mode}"
    for mode in ("strict", "loose")
    for level in ("prompt", "instruction")
}
"""Their names here, and those of the benchmark's metrics in the result of `herl eval`."""


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


def accuracies(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The four, by `prompt_level_strict` and so on, from what `herl eval` says of the benchmark.

    Raises:
        ValueError: a response has no score, so that a share would be one of fewer prompts, or a
            metric is missing.
    """
    if numbers["unscored"]:
        raise ValueError(
            f"{numbers['unscored']} of {numbers['responses']} responses have no score; the run's"
            " rollouts/eval.jsonl says why"
        )
    metrics = numbers["metrics"]
    if missing := [metric for metric in FOUR.values() if metric not in metrics]:
        raise ValueError(f"no {', '.join(missing)}: {'; '.join(numbers['notes'])}")
    return {name: metrics[metric] for name, metric in FOUR.items()}


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
    """Rows, responses and numbers in `out`; what its accuracies.json holds.

    out: not in the folder of a run: the evaluation is a run of its own there.

    Raises:
        ValueError: responses have no score; `out` holds those of something else.
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
    evaluated = json.loads((drawn / EVALUATED).read_text(encoding="utf-8"))
    numbers = evaluated["benchmarks"]["ifeval"]
    content = {
        "prompts": numbers["prompts"],
        **accuracies(numbers),
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
