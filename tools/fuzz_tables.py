"""As `tools/fuzz.py`, of what a row reads: its record, evaluation and rows' report, mutated.

python tools/fuzz_tables.py --inputs 2000 [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from herl_megatron.config.load import save_resolved
from herl_megatron.config.schema import Config, ModelConfig, RunConfig
from herl_megatron.files.run_files import EVALUATED, write_run_file
from herl_megatron.reproduce.data_sets import EVALUATION
from herl_megatron.reproduce.prepared_rows import WantedRows, report_options
from herl_megatron.reproduce.row_record import RECORD, RowRecord, write_record
from herl_megatron.reproduce.table_files import write_table
from tools.fuzz import Outcome, damaged, mutated


def fuzz_tables(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """A row's record or its evaluation with a value or bytes changed: what a table reads of it."""
    outcome, row = Outcome(), folder / "row"
    whole = _row(row)
    for number in range(inputs):
        changed = list(whole)[number % 2]
        for file, value in whole.items():
            file.write_text(json.dumps(value))
        if draw.random() < 0.3:
            data, how = damaged(changed.read_bytes(), draw)
            changed.write_bytes(data)
        else:
            value, how = mutated(whole[changed], draw)
            changed.write_text(json.dumps(value))
        outcome.attempt(
            lambda: write_table([row], named={}, out=folder / "out"),
            said=f"{changed.name}: {how}", places=(changed.name, "is neither a run"),
        )  # fmt: skip
    return outcome


def fuzz_reports(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """The report beside prepared rows with a value or bytes changed: words that can be shown."""
    outcome, file = Outcome(), folder / "report.json"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.jsonl").write_text("{}\n")
    origin = EVALUATION["ifeval"]
    rows = WantedRows("ifeval", origin, "", origin.options, folder, (folder / "eval.jsonl",))
    options = report_options("ifeval", origin.options)
    whole = {
        "source": "ifeval", "options": options, "rows": {"in": 1, "eval": 1, "rejected": 0},
        "inputs": [{"place": "google/IFEval", "split": "", "config": "", "sha256": ""}],
        "rejected": {"repeated row": 1}, "leaked": {"eval": 1},
    }  # fmt: skip
    for _ in range(inputs):
        if draw.random() < 0.3:
            data, how = damaged(json.dumps(whole).encode(), draw)
            file.write_bytes(data)
        else:
            value, how = mutated(whole, draw)
            file.write_text(json.dumps(value))
        outcome.attempt(lambda: _raise(rows.differs()), said=how, places=(str(folder),))
    return outcome


def _raise(said: str) -> None:
    said.encode()
    if said:
        raise ValueError(said)


def _row(row: Path) -> dict[Path, object]:
    """A row with one evaluation, and its two files as they should be."""
    run = row / "eval_ifeval"
    run.mkdir(parents=True)
    config = Config(run=RunConfig(name="run", dir="x"), model=ModelConfig(path="m"))
    save_resolved(config, run / "config.yaml")
    (run / "metrics.jsonl").write_text('{"step": 0, "eval/reward": 0.5}\n')
    write_run_file(run, {"command": "eval", "fingerprints": {}})
    found = {"headline": "a", "prompts": 9, "responses": 9, "unscored": 1, "metrics": {"a": 0.5}}
    numbers = {"benchmarks": {"ifeval": found | {"interval": {"a": [0.1, 0.9]}}}}
    of = ("qwen2.5_7b/if/herl", "full", "released", {"train": ["train"]})
    write_record(row, RowRecord(*of, {"eval_ifeval": {"train": "0123"}}))
    return {row / RECORD: json.loads((row / RECORD).read_text()), run / EVALUATED: numbers}


def main() -> int:
    """Exit code 1 if there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failures = 0
    for name, fuzz in (("tables", fuzz_tables), ("reports", fuzz_reports)):
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            outcome = fuzz(Path(place), options.inputs, random.Random(options.seed))
        print(outcome.line(name, time.perf_counter() - begun))
        for said, came in outcome.failures[:20]:
            print(f"  {said}\n    {came}")
        failures += len(outcome.failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
