"""Weight sync on this machine: time over a plain copy, pause of generation, extra memory.

    python tools/bench/bench_weight_sync.py --tensor-parallel 2 --repeats 12 --out sync.json

A random Qwen2 model of `--megabytes` is made in a temporary folder; real Megatron ranks send it to
a real vLLM engine through Ray. In turns with each sync the same bytes are copied once between two
warm buffers (memcpy) and sent once from one process to another over gloo, so that the ratios come
from the same minutes. The pause runs from the last token under the old weights to the first token
under the new ones. Extra memory is each process's peak resident size during a sync over the size
before it, as the kernel counts it (Linux): the first sync includes what a process sets up once,
later ones reuse what the allocator keeps; `tests/distributed/test_model_weights.py` counts tensors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil
import torch
import torch.distributed as dist

from herl_megatron.config.schema import (
    Config,
    DataConfig,
    HindsightConfig,
    MegatronConfig,
    ModelConfig,
    ParityConfig,
    RolloutConfig,
    TrainConfig,
    WeightSyncConfig,
)
from herl_megatron.data.toy_model import build_tokenizer
from herl_megatron.run.inputs import load_inputs
from herl_megatron.run.parts import TrainParts, open_train_parts
from herl_megatron.types import GenerateRequest, SamplingSettings
from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file

_MB = 1 << 20
_TIME_GOAL = 1.5
_PAUSE_GOAL = 2.0
_GLOO_PIECE_BYTES = 16 * _MB


def write_model(folder: Path, megabytes: int, dtype: torch.dtype) -> None:
    """A random Qwen2 model of about this size, and one prompt."""
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    hidden = 768
    per_layer = hidden * hidden * (2 + 2 / 3 + 3 * 3)  # attention with grouped keys, MLP of 3x
    layers = max(2, round(megabytes * _MB / dtype.itemsize / per_layer / 2) * 2)
    make_config: Any = Qwen2Config
    config = make_config(
        architectures=["Qwen2ForCausalLM"],
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    config.save_pretrained(folder)
    make_model: Any = Qwen2ForCausalLM
    model = make_model(config).to(dtype)
    save_file(dict(model.named_parameters()), folder / "model.safetensors", {"format": "pt"})
    criterion = {"id": "c", "kind": "rule", "check": "ifeval/punctuation:no_comma"}
    row = {
        "id": "prompt",
        "messages": [{"role": "user", "content": "Write about the island."}],
        "rubric": {"criteria": [criterion]},
    }
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")


def config_for(folder: Path, arguments: argparse.Namespace) -> Config:
    """The smallest run around the model: trainer ranks, one engine, one scoring process."""
    return Config(
        model=ModelConfig(path=str(folder)),
        data=DataConfig(
            train=str(folder / "prompts.jsonl"), max_prompt_tokens=64, max_experience_tokens=64
        ),
        rollout=RolloutConfig(
            tensor_parallel=arguments.engine_tensor_parallel,
            dtype=arguments.precision,
            max_response_tokens=64,
            kv_cache_bytes=64 * _MB,
        ),
        hindsight=HindsightConfig(enabled=False),
        train=TrainConfig(steps=1, prompts_per_step=1, prompts_per_optimizer_step=1),
        megatron=MegatronConfig(
            precision=arguments.precision,
            tensor_parallel=arguments.tensor_parallel,
            pipeline_parallel=arguments.pipeline_parallel,
        ),
        weight_sync=WeightSyncConfig(bucket_bytes=arguments.bucket_megabytes * _MB),
        parity=ParityConfig(every=0),
    )


class Gloo:
    """A second process that receives bytes over gloo: the transport's floor on this machine."""

    def __init__(self, num_bytes: int, meeting: Path) -> None:
        """`meeting`: a file that does not exist yet, where the two processes find each other."""
        self._buffer = torch.zeros(num_bytes, dtype=torch.uint8)
        context = multiprocessing.get_context("spawn")
        self._peer = context.Process(target=_receive, args=(num_bytes, meeting), daemon=True)
        self._peer.start()
        _join(0, meeting)

    def send_s(self) -> float:
        """Seconds to send all bytes once and hear that they have arrived."""
        dist.barrier()
        begin = time.perf_counter()
        for piece in self._buffer.split(_GLOO_PIECE_BYTES):
            dist.send(piece, 1)
        dist.barrier()
        return time.perf_counter() - begin

    def close(self) -> None:
        """End the other process."""
        self._peer.terminate()
        self._peer.join()
        dist.destroy_process_group()


def _join(rank: int, meeting: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def _receive(num_bytes: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    _join(1, meeting)
    buffer = torch.zeros(num_bytes, dtype=torch.uint8)
    while True:
        dist.barrier()
        for piece in buffer.split(_GLOO_PIECE_BYTES):
            dist.recv(piece, 0)
        dist.barrier()


def memcpy_s(source: torch.Tensor, target: torch.Tensor) -> float:
    """Seconds of one plain copy."""
    begin = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - begin


async def measure_times(parts: TrainParts, repeats: int, meeting: Path) -> dict[str, list[float]]:
    """Seconds of each repeat by what was timed."""
    assert parts.weight_sync is not None
    num_bytes = (await parts.sync_weights(1)).num_bytes
    source = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.zeros_like(source)
    gloo = Gloo(num_bytes, meeting)
    memcpy_s(source, target)
    gloo.send_s()
    names = ("memcpy", "gloo", "write", "load", "sync", "pause")
    times: dict[str, list[float]] = {name: [] for name in names}
    try:
        for version in range(2, 2 + repeats):
            times["memcpy"].append(memcpy_s(source, target))
            times["gloo"].append(await asyncio.to_thread(gloo.send_s))
            await _sample(parts, f"before-{version}", tokens=8)
            begin = time.perf_counter()
            stats = await parts.sync_weights(version)
            await _sample(parts, f"after-{version}", tokens=1)
            times["pause"].append(time.perf_counter() - begin)
            times["sync"].append(stats.pause_s)
            times["write"].append(stats.write_s)
            times["load"].append(stats.load_s)
    finally:
        gloo.close()
    return times


async def _sample(parts: TrainParts, name: str, *, tokens: int) -> None:
    ids = parts.inputs.tokenizer.plain_ids("Write about the island.")
    settings = SamplingSettings(max_tokens=tokens)
    await parts.engines[0].generate([GenerateRequest(name, np.asarray(ids), settings, seed=0)])


async def measure_memory(parts: TrainParts, version: int) -> dict[str, int]:
    """Peak resident bytes during a sync over those before it, by process title."""
    processes = {
        f"{title} ({process.pid})": process
        for process in psutil.Process().children(recursive=True)
        for title in ("ray::TrainerRank", "ray::EngineWorker", "VLLM::Worker")
        if title in " ".join(process.cmdline())
    }
    before = {}
    for name, process in processes.items():
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak starts anew
        before[name] = _resident_bytes(process.pid, "VmRSS")
    await parts.sync_weights(version)
    return {
        name: _resident_bytes(process.pid, "VmHWM") - before[name]
        for name, process in processes.items()
    }


def _resident_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"/proc/{pid}/status has no {field}")


async def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start everything, measure, end everything."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision]
    with tempfile.TemporaryDirectory(prefix="herl-bench-") as name:
        write_model(Path(name), arguments.megabytes, dtype)
        config = config_for(Path(name), arguments)
        async with open_train_parts(config, load_inputs(config, training=True)) as parts:
            first = await measure_memory(parts, 0)
            times = await measure_times(parts, arguments.repeats, Path(name) / "meeting")
            later = await measure_memory(parts, arguments.repeats + 2)
            plan = parts.trainer.bucket_plan()
    return {
        "times_s": times,
        "first_extra_bytes": first,
        "later_extra_bytes": later,
        "sent_bytes": sum(bucket.num_bytes for bucket in plan),
        "bucket_bytes": max(bucket.num_bytes for bucket in plan),
        "largest_tensor_bytes": max(t.num_bytes for bucket in plan for t in bucket.tensors),
        "buckets": len(plan),
    }


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """Medians, ratios with their interval, and extra memory."""
    times = result["times_s"]
    rows = [Row("sent", f"{result['sent_bytes'] / _MB:.0f} MiB in {result['buckets']} buckets")]
    for name, seconds in times.items():
        rate = result["sent_bytes"] / median(seconds) / (1 << 30)
        rows.append(Row(name, f"{1e3 * median(seconds):.1f} ms, {rate:.2f} GiB/s"))
    for name, floor, goal in (
        ("sync", "memcpy", _TIME_GOAL),
        ("sync", "gloo", _TIME_GOAL),
        ("pause", "sync", _PAUSE_GOAL),
    ):
        ratio = paired_ratio(times[name], times[floor])
        shown = interval_text(ratio)
        rows.append(Row(f"{name} over {floor}", shown, f"<= {goal}x", ratio[2] <= goal))
    allowed = result["bucket_bytes"] + result["largest_tensor_bytes"]
    limit = f"<= {allowed / _MB:.1f} MiB"
    for when in ("first", "later"):
        for name, extra in result[f"{when}_extra_bytes"].items():
            shown = f"{extra / _MB:.1f} MiB"
            rows.append(Row(f"extra memory, {when} sync, {name}", shown, limit, extra <= allowed))
    return rows


def main() -> None:
    """Parse arguments, measure, print tables, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=120, help="size of the model's weights")
    parser.add_argument("--bucket-megabytes", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tensor-parallel", type=int, default=2)
    parser.add_argument("--engine-tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started_on = machine()
    result = asyncio.run(bench(arguments))
    title = (
        f"weight sync, trainer TP {arguments.tensor_parallel}, engine TP"
        f" {arguments.engine_tensor_parallel}, {arguments.precision}"
    )
    report(title, rows_of(result), raw=result, started_on=started_on, out=arguments.out)


if __name__ == "__main__":
    main()
