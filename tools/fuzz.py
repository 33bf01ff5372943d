"""Mutated rows, models, run configurations and checkpoints: each is taken, or refused by a
ValueError that says where; anything else is a failure, and printed with what it came of.

    python tools/fuzz.py --inputs 2000 [--seed 1] [--only rows]

The tests run it at a size that takes seconds (`tests/unit/tools/test_fuzz.py`).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig

from herl_megatron.commands.answer_records import read_rewards
from herl_megatron.commands.dpo import DpoTask, PairRows
from herl_megatron.config.load import load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.rules.data import read_shape
from herl_megatron.config.schema import Config, DPOConfig, ModelConfig, RunConfig
from herl_megatron.config.validate import shape_problems, validate
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.fingerprints import fingerprints
from herl_megatron.data.preference_pairs import load_pairs
from herl_megatron.data.prompt_source import check_prompt_lengths, load_prompts, load_sft_rows
from herl_megatron.data.responses import load_responses
from herl_megatron.data.sources.read import Input, read_rows
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.files.manifest import write_manifest
from herl_megatron.megatron.convert.conversion import hf_to_megatron
from herl_megatron.megatron.convert.layout import TrainerLayout
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.known_families import FAMILIES
from herl_megatron.models.rope import inverse_frequencies
from herl_megatron.run.checkpoints import (
    DriverState,
    find_checkpoint,
    publish_checkpoint,
    start_checkpoint,
)
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.model_files import check_model
from herl_megatron.types import TokenRow

ODD: tuple[Any, ...] = (
    None, True, "", " ", "x", "x" * 9999, "\ud83d", "\0", 0, -1, 1.5, 2**31, 10**30, 10**400, 1e308,
    float("nan"), float("inf"), [], {}, [[]], [None], {"": 0}, "${a.b}", "010", "1:30", "a #b",
    "../x", "/", "~", "\U0001f600", "NaN",
)  # fmt: skip
_DEEP = 5000
QUICKSTART = Path(__file__).parents[1] / "configs/quickstart_cpu.yaml"


@dataclass
class Outcome:
    """What became of the inputs of one kind; failures are (what was done, what came of it)."""

    taken: int = 0
    refused: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def line(self, name: str, seconds: float) -> str:
        """For people."""
        return (
            f"{name:<12}{self.taken + self.refused + len(self.failures):>7} inputs:"
            f" {self.taken} taken, {self.refused} refused with a place,"
            f" {len(self.failures)} failures, {seconds:.0f} s"
        )

    def attempt(self, job: Callable[[], object], *, said: str, places: Sequence[str]) -> None:
        """Run a job on an input; said: how it was made, places: one of these a refusal names."""
        try:
            job()
            self.taken += 1
        except ValueError as error:
            if type(error) is UnicodeDecodeError or not any(
                place in str(error) for place in places
            ):
                self.failures.append((said, f"no place: {type(error).__name__}: {error}"))
            else:
                self.refused += 1
        except Exception as error:  # what this is here to find
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            at = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
            self.failures.append((said, f"{type(error).__name__}: {error} at {at}"))


def mutated(value: Any, draw: random.Random) -> tuple[Any, str]:
    """A copy of a JSON value with one place in it changed, and how."""
    changed = copy.deepcopy(value)
    ways = list(_ways(changed))
    if not ways:
        return draw.choice(ODD), "all of it"
    way = draw.choice(ways)
    inner = changed
    for step in way[:-1]:
        inner = inner[step]
    how, last = draw.choice(("replace", "replace", "replace", "remove", "repeat", "name")), way[-1]
    if how == "remove":
        del inner[last]
    elif how == "repeat" and isinstance(inner, list):
        inner.insert(last, copy.deepcopy(inner[last]))
    elif how == "name" and isinstance(inner, dict):
        inner[draw.choice(("", "x", "\ud83d", "id", "role", "kind", "a.b"))] = inner.pop(last)
    else:
        inner[last] = odd = draw.choice(ODD)
        how = f"{how} by {odd!r:.30}"
    return changed, f"{how} at {'.'.join(map(str, way))}"


def _ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if way:
        yield way
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _ways(item, (*way, key))


def damaged(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Bytes with a few of them changed, taken out, put in or repeated, and how."""
    at = draw.randrange(len(data)) if data else 0
    size = draw.choice((1, 1, 2, 9, 200))
    some = bytes(draw.randrange(256) for _ in range(size))
    how = draw.choice(("cut", "change", "change", "take out", "put in", "repeat", "nest", "other"))
    made = {
        "cut": data[:at],
        "change": data[:at] + some + data[at + size :],
        "take out": data[:at] + data[at + size :],
        "put in": data[:at] + some + data[at:],
        "repeat": data[:at] + data[at : at + size] + data[at:],
        "nest": data[:at] + b"[" * _DEEP + data[at:],
        "other": draw.choice((b"", b"null", b"[]", b"{}", b"\x1f\x8b\x08", b"\xff\xfe{", b"0")),
    }[how]
    return made, f"{how} {size} bytes at {at} of {len(data)}"


def fuzz_rows(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """Files of rows for training, tuning, pairs and scoring, one row or a few bytes changed."""
    outcome = Outcome()
    toy = _toy(folder)
    tokenizer = ChatTokenizer(str(toy / "model"))
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()[:3]]
    turns = [*rows[0]["messages"], {"role": "assistant", "content": "No."}]
    pair = {"id": "p", "messages": rows[0]["messages"], "chosen": "a", "rejected": "b"}
    judged = {"id": "j", "kind": "judge", "description": "It is short.", "weight": 2}
    rows[1]["rubric"]["criteria"].append(judged)
    rows[1] |= {"reference_answer": "No.", "extra": {"a": [1, {"b": None}]}}

    scored = [
        {"id": "a", "made_from": "0", "reward": 1.0},
        {"id": "b", "made_from": "0", "responses": [{"reward": 0.5}, {"reward": None}]},
    ]

    def train(path: str) -> None:
        prompts = load_prompts(path)
        check_prompt_lengths(prompts, tokenizer, 10_000)
        fingerprints(
            ModelConfig(path=str(toy / "model")), tokenizer, train=prompts, held_out=(),
            check_modules=(), text_files={},
        )  # fmt: skip

    kinds: list[tuple[Callable[[str], object], list[Any]]] = [
        (train, rows), (train, rows), (load_sft_rows, [{"messages": turns}] * 2),
        (load_pairs, [pair]), (_rewards, scored),
        (load_responses, [row | {"response": "No."} for row in rows]),
        (load_responses, [_group(row) for row in rows]),
    ]  # fmt: skip
    file, table = folder / "rows.jsonl", folder / "rows.csv"
    for _ in range(inputs):
        if draw.random() < 0.1:
            data, how = damaged(b'Question,"Record ID"\n"a, b",1\nc,2\n', draw)
            table.write_bytes(data)
            job: Callable[[], object] = lambda: read_rows(Input(str(table)))  # noqa: E731
            outcome.attempt(job, said=how, places=[f"{table}: "])
            continue
        load, given = draw.choice(kinds)
        given, how = list(given), ""
        if draw.random() < 0.7:
            at = draw.randrange(len(given))
            given[at], how = mutated(given[at], draw)
        data = "\n".join(json.dumps(row) for row in given).encode()
        if not how:
            data, how = damaged(data, draw)
        file.write_bytes(data)
        places = [f"{file}:", f"{file}: ", "prompt '", "data.max_prompt_tokens"]
        outcome.attempt(lambda load=load: load(str(file)), said=how, places=places)  # type: ignore[misc]
    return outcome


def _group(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a run's rollout file has it, with two responses."""
    group = {key: value for key, value in row.items() if key not in ("id", "rubric")}
    rollouts = [{"index": n, "text": "No.", "reward": None} for n in range(2)]
    aggregation = row["rubric"].get("aggregation", "explicit")
    return group | {"prompt_id": row["id"], "criteria": row["rubric"]["criteria"],
                    "aggregation": aggregation, "rollouts": rollouts}  # fmt: skip


def _rewards(path: str) -> object:
    return list(read_rewards(Path(path)))


def fuzz_models(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """A model's folder with a file of it changed: what a start reads of it."""
    outcome = Outcome()
    source, model = _toy(folder) / "model", folder / "model"
    config = load_config(QUICKSTART, [f"model.path={model}"])

    def start() -> None:
        shape = read_shape(model / "config.json")
        if problems := list(shape_problems(config, shape, purpose="train", device="cpu")):
            raise ValueError("; ".join(problems))
        check_model(config.model, trains=True)
        if changed != "config.json":
            ChatTokenizer(str(model))

    changed = ""
    _linked_copy(source, model)
    start()  # as it is
    names = sorted(path.name for path in source.iterdir())
    for _ in range(inputs):
        changed = draw.choice([*names, *["config.json"] * 8])
        _linked_copy(source, model)
        data = (source / changed).read_bytes()
        if changed.endswith(".json") and draw.random() < 0.8:
            value, how = mutated(json.loads(data), draw)
            made = json.dumps(value).encode()
        elif changed.endswith(".safetensors"):
            head, how = damaged(data[:2000], draw)
            made = head + data[2000:]
        else:
            made, how = damaged(data, draw)
        (model / changed).unlink()
        (model / changed).write_bytes(made)
        places = ["model.path", str(model), "the model's", "rollout.", "data.max"]
        outcome.attempt(start, said=f"{changed}: {how}", places=places)
    return outcome


def fuzz_families(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """The `config.json` of a family, as transformers writes or as models are published, with one
    value in it changed: its rules, and what becomes of it."""
    outcome = Outcome()
    file = folder / "config.json"
    sizes = ["megatron.tensor_parallel=1", f"rollout.kv_cache_bytes={1 << 40}"]
    config = load_config(QUICKSTART, [f"model.path={folder}", *sizes])
    published = {
        "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0, "truncate": True},
        "rope_local_base_freq": 1e4, "sliding_window_pattern": 3, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32, "mscale": 1.0}
    yarn |= {"original_max_position_embeddings": 4096, "mscale_all_dim": 1.0}
    sources: list[Any] = []
    for name in FAMILIES:
        written = AutoConfig.for_model(name).to_dict()
        kept = {key: value for key, value in written.items() if "rope" not in key}
        sources += [written, kept | published, written | {"rope_parameters": yarn}]

    def read() -> None:
        shape = read_shape(file)
        if problems := list(shape_problems(config, shape, purpose="train", device="cpu")):
            raise ValueError("; ".join(problems))
        architecture = read_architecture(str(folder))
        inverse_frequencies(architecture.rope, architecture.head_dim)

    for _ in range(inputs):
        source = draw.choice(sources)
        changed, how = mutated(source, draw) if draw.random() < 0.95 else (source, "as it is")
        file.write_text(json.dumps(changed))
        places = ["model.path", str(file), "the model's", "rollout.", "data.max"]
        said = f"{source['model_type']}: {how}"
        outcome.attempt(read, said=said, places=places)
    return outcome


def fuzz_configs(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """The quickstart's configuration, in a file and as overrides, with a value or bytes changed."""
    outcome = Outcome()
    toy = _toy(folder)
    values = load_config(QUICKSTART).model_dump(mode="json")
    values["model"]["path"] = str(toy / "model")
    values["data"] |= {"train": str(toy / "train.jsonl"), "eval": str(toy / "heldout.jsonl")}
    values["run"]["dir"] = str(folder / "runs")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    validate(load_config(file), purpose="train", machine=Machine())  # as it is
    for _ in range(inputs):
        overrides: list[str] = []
        if (kind := draw.random()) < 0.5:
            changed, how = mutated(values, draw)
            data = yaml.safe_dump(changed, sort_keys=False).encode(errors="surrogatepass")
        else:
            data, how = yaml.safe_dump(values, sort_keys=False).encode(), "bytes"
        if 0.5 <= kind < 0.75:
            data, how = damaged(data, draw)
        elif kind >= 0.75:
            section = draw.choice([name for name in values if values[name]])
            name, odd = draw.choice(list(values[section])), draw.choice(ODD)
            overrides = [f"{section}.{name}={odd if isinstance(odd, str) else json.dumps(odd)}"]
            how = overrides[0][:200]
        file.write_bytes(data)

        def prepare(overrides: Sequence[str] = tuple(overrides)) -> None:
            config = effective_config(load_config(file, overrides), purpose="train")
            validate(config, purpose="train", machine=Machine())

        outcome.attempt(prepare, said=how, places=["configuration: "])
    return outcome


def fuzz_checkpoints(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """A run's newest checkpoint, or a folder of converted weights, with a file of it changed."""
    outcome = Outcome()
    toy = _toy(folder)
    kept = Config(run=RunConfig(dir=str(folder), name="kept"), model=ModelConfig(path="toy"))
    with RunFolder.create(kept):
        for step in (10, 20):
            _save(folder / "kept", step, kept)
    converted = folder / "converted"
    hf_to_megatron(toy / "model", converted, layout=TrainerLayout(tp=2))
    runs = RunConfig(dir=str(folder), name="run", resume=True)
    resumed = kept.model_copy(update={"run": runs})
    started = ModelConfig(path=str(toy / "model"), megatron_path=str(folder / "weights"))
    newest = folder / "run" / "checkpoints" / "step_000020"
    for _ in range(inputs):
        if draw.random() < 0.7:
            _linked_copy(folder / "kept", folder / "run")
            how = _spoiled(newest, draw)
            outcome.attempt(lambda: find_checkpoint(resumed), said=how, places=[str(newest)])
        else:
            _linked_copy(converted, folder / "weights")
            how = _spoiled(folder / "weights", draw)
            places = ["weights", "model.path"]
            outcome.attempt(lambda: check_model(started, trains=True), said=how, places=places)
    return outcome


def fuzz_references(folder: Path, inputs: int, draw: random.Random) -> Outcome:
    """What a checkpoint of `herl dpo` keeps of its reference, with a place in it changed."""
    outcome = Outcome()
    ids = np.ones(3, np.int32)
    pair = PairRows(TokenRow("a", ids, ids), TokenRow("b", ids, ids))

    def task() -> DpoTask:
        options = DPOConfig(steps=2, pairs_per_step=2)
        return DpoTask([pair] * 5, options, seed=0, shuffle=False)

    kept = task()
    kept.reference[:4] = -torch.arange(8.0).reshape(4, 2)
    for _ in range(inputs):
        good = kept.state_dict()
        state, how = mutated(good, draw)
        if not isinstance(state, dict) or draw.random() < 0.5:  # the former `find_checkpoint` sees
            how = draw.choice(["pairs", "reference"])
            at = draw.randrange(len(good[how]))
            text = good[how][:at] + draw.choice("A/=9*") + good[how][at + 1 :]
            state = {**good, how: text}
        places = ["the reference's log-probs"]
        outcome.attempt(lambda: task().load_state_dict(state), said=how, places=places)  # noqa: B023
    return outcome


def _save(run: Path, step: int, config: Config) -> None:
    staging = start_checkpoint(run, step)
    (staging / "trainer" / "__0_0.distcp").write_bytes(b"weights of step %d" % step)
    values = config.model_dump(mode="json")
    driver = DriverState(step, 0, {"position": step}, {"reward": 0.5}, values)
    publish_checkpoint(staging, driver, keep=2, written={})


def _spoiled(folder: Path, draw: random.Random) -> str:
    """Change one file of a folder, or what stands in its place; how."""
    file = draw.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    name, data = str(file.relative_to(folder)), file.read_bytes()
    kind = draw.choice(
        ("bytes", "bytes", "bytes", "json", "json", "gone", "folder", "link", "file")
    )
    if kind == "file":
        shutil.rmtree(folder)
        folder.write_bytes(b"")
        return "a file in place of the folder"
    file.unlink()
    how = kind
    if kind == "json" and name.endswith(".json"):
        value, how = mutated(json.loads(data), draw)
        file.write_text(json.dumps(value))
    elif kind in ("bytes", "json"):
        data, how = damaged(data, draw)
        file.write_bytes(data)
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("nowhere")
    if kind in ("bytes", "json") and name != "manifest.json" and draw.random() < 0.5:
        (folder / "manifest.json").unlink(missing_ok=True)
        write_manifest(folder)  # so that what is in the file has to be looked at
        how += ", with a manifest that fits"
    return f"{name}: {how}"


def _toy(folder: Path) -> Path:
    toy = folder / "toy"
    write_toy_task(toy, seed=0, train_prompts=8, heldout_prompts=2, sft_rows=2)
    return toy


def _linked_copy(source: Path, target: Path) -> None:
    """A copy without copying: a file of it must be unlinked before it is written."""
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    shutil.copytree(source, target, copy_function=os.link, symlinks=True)


FUZZERS: dict[str, Callable[[Path, int, random.Random], Outcome]] = {
    "rows": fuzz_rows,
    "models": fuzz_models,
    "families": fuzz_families,
    "configs": fuzz_configs,
    "checkpoints": fuzz_checkpoints,
    "references": fuzz_references,
}


def main() -> int:
    """Exit code 1 if there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FUZZERS)
    options = parser.parse_args()
    failed = False
    for name, fuzz in FUZZERS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="herl-fuzz-") as folder:
                begin = time.monotonic()
                outcome = fuzz(Path(folder), options.inputs, random.Random(options.seed))
            print(outcome.line(name, time.monotonic() - begin), flush=True)
            for said, came in outcome.failures:
                print(f"  {said}\n    {came:.400}")
            failed = failed or bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
