"""HeRL from Python: a warm start, an evaluation and some scores, in about a minute on the CPU.

Run it from the repository's root; it writes into the folder that it is given:

    python docs/examples/from_python.py runs/from_python
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from herl_megatron import evaluate, prepare, score, sft
from herl_megatron.data.toy_files import write_toy_task

NO_COMMA = {"id": "comma", "kind": "rule", "check": "ifeval/punctuation:no_comma"}


def main(folder: Path) -> None:
    """Every step in its own folder below `folder`."""
    toy = folder / "toy"
    write_toy_task(toy, seed=0, train_prompts=16, heldout_prompts=4, sft_rows=80)
    common = [f"run.dir={folder}", "megatron.tensor_parallel=1", "rollout.replicas=1"]

    # Two steps from random weights: too few to learn anything, enough to see how it goes.
    config = prepare(
        "configs/quickstart_sft_cpu.yaml",
        [*common, f"model.path={toy}/model", f"sft.data={toy}/sft.jsonl", "sft.steps=2"],
        command="sft",
    )
    tuned = sft(config)
    lines = (tuned.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        print(f"step {line['step']}: loss {line['sft/loss']:.3f}")

    config = prepare(
        "configs/quickstart_cpu.yaml",
        [*common, "run.name=evaluation", f"model.path={tuned.policy}",
         f"data.eval={toy}/heldout.jsonl", "eval.samples_per_prompt=1",
         "rollout.max_response_tokens=16"],
        command="eval",
    )  # fmt: skip
    held_out = evaluate(config).result
    print(f"{held_out.responses} held-out responses: mean reward {held_out.reward:.3f}")

    # Rules alone need no model: the same scoring for responses that are already there.
    message = {"role": "user", "content": "Name two rivers, without a comma."}
    row = {"id": "rivers", "messages": [message], "rubric": {"criteria": [NO_COMMA]}}
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps(row | {"responses": ["Nile and Rhine", "Nile, Rhine"]}) + "\n")
    scored = score(prepare((), command="score"), rows, folder / "verdicts.jsonl")
    print(f"mean reward of the {scored.totals['scored']} answers about rivers:"
          f" {scored.totals['mean_reward']}")  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/from_python"))
