"""Memory and speed of the conversion tools on a synthetic model, against copying the same files.

    python tools/bench/bench_conversion.py --folder /big/disk  # 2 GB in 10 shards, 6 pairs
    python tools/bench/bench_conversion.py --folder /big/disk --layers 44 --tp 8 --pp 4

Random bf16 weights are written as a Hugging Face folder of at least 8 shards, converted to Megatron
for the layout and back, in turns with `cp` of the same input (files warm in the page cache for
both; what is written is flushed to disk between the turns, in neither's time). Measured are the
conversion's own time, hashing of input and output included and without Python's start and imports
(transformers among them), which are shown by themselves; the peak of anonymous memory (RssAnon of
the tool's process and its children, sampled every 10 ms, imports included); and whether every
tensor's bytes come back. Needs five times the model on the disk; everything is deleted at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file

ROOT = Path(__file__).resolve().parents[2]
HEADS, KV_HEADS = 16, 4
SHARDS = 10
MEMORY_GOAL, SPEED_GOAL = 0.25, 0.5


@dataclass
class Measured:
    """One direction's turns."""

    copy_s: list[float] = field(default_factory=list)
    convert_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def write_model(folder: Path, *, layers: int, hidden: int, vocab: int) -> int:
    """A Llama-shaped model with random bf16 weights in `SHARDS` shards; returns its bytes."""
    ffn = _ffn(hidden)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    kv = hidden * KV_HEADS // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.self_attn.q_proj.weight": (hidden, hidden),
            f"{name}.self_attn.k_proj.weight": (kv, hidden),
            f"{name}.self_attn.v_proj.weight": (kv, hidden),
            f"{name}.self_attn.o_proj.weight": (hidden, hidden),
            f"{name}.post_attention_layernorm.weight": (hidden,),
            f"{name}.mlp.gate_proj.weight": (ffn, hidden),
            f"{name}.mlp.up_proj.weight": (ffn, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, ffn),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()}
    room = sum(sizes.values()) / SHARDS
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled + size / 2 > room * len(shards):
            shards.append([])
        shards[-1].append(name)
        filled += size
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    assert len(shards) >= 8, f"{len(shards)} shards"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return sum(sizes.values())


def _ffn(hidden: int) -> int:
    """5,632 at 2,048."""
    return hidden * 11 // 4


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                raw = file.get_tensor(name).contiguous().view(torch.uint8).numpy()
                found[name] = hashlib.sha256(raw.data).hexdigest()
    return found


def anonymous_bytes(process: psutil.Process) -> int:
    """RssAnon of a process and its children."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            status = Path(f"/proc/{one.pid}/status").read_text()
            if found := re.search(r"RssAnon:\s+(\d+) kB", status):
                total += int(found[1]) << 10
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        pass
    return total


def convert(tool: str, *arguments: str) -> tuple[float, float, int]:
    """Run a tool: (its conversion's seconds, with Python's start, peak anonymous bytes)."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / tool), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(process))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = child.communicate()
    whole_s = time.perf_counter() - start
    watcher.join()
    if child.returncode:
        raise RuntimeError(f"{tool} {' '.join(arguments)}: {errors}")
    found = re.search(r"in ([\d.]+) s", output)
    assert found, output
    return float(found[1]), whole_s, peak


def copy_s(source: Path, target: Path) -> float:
    """Seconds of `cp -r`."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    return time.perf_counter() - start


def settle(*folders: Path) -> None:
    """Delete, flush to disk."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def measure(work: Path, args: argparse.Namespace) -> tuple[Measured, Measured, bool]:
    """All turns; whether every tensor came back in each of them."""
    hf, megatron, back, copy = (work / name for name in ("hf", "megatron", "back", "copy"))
    there, again = Measured(), Measured()
    before, same = hashes(hf), True  # reading them warms the page cache
    layout = ["--tp", str(args.tp), "--pp", str(args.pp), "--threads", str(args.threads)]
    for _ in range(args.pairs):
        turns = (
            (there, hf, megatron, ["convert_hf_to_megatron.py", "--hf", str(hf), *layout]),
            (again, megatron, back,
             ["convert_megatron_to_hf.py", "--megatron", str(megatron),
              "--threads", str(args.threads)]),
        )  # fmt: skip
        for measured, source, target, command in turns:
            measured.copy_s.append(copy_s(source, copy))
            settle(copy)
            seconds, whole, peak = convert(*command, "--out", str(target))
            measured.convert_s.append(seconds)
            measured.whole_s.append(whole)
            measured.peak_bytes.append(peak)
            os.sync()
        same = same and hashes(back) == before
        settle(megatron, back)
    return there, again, same


def main() -> int:
    """Measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers", type=int, default=22, help="22 make 2.2 GB")
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 64")
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--out", type=new_file, help="JSON")
    args = parser.parse_args()
    started_on = machine()
    torch.manual_seed(0)
    hidden = args.hidden
    layer_bytes = 2 * (hidden * hidden * 2 + 2 * hidden * hidden * KV_HEADS // HEADS)
    layer_bytes += 2 * 3 * hidden * _ffn(hidden)
    needed = 5 * (args.layers * layer_bytes + 4 * args.vocab * hidden)
    if (free := shutil.disk_usage(args.folder).free) < needed:
        raise SystemExit(f"{args.folder} has {free:,} bytes free, {needed:,} are needed: --folder")
    work = Path(tempfile.mkdtemp(prefix="bench_conversion_", dir=args.folder))
    try:
        model_bytes = write_model(work / "hf", layers=args.layers, hidden=hidden, vocab=args.vocab)
        os.sync()
        there, again, same = measure(work, args)
    finally:
        shutil.rmtree(work)
    rows = []
    for name, measured in (("HF to Megatron", there), ("Megatron to HF", again)):
        speed = paired_ratio(measured.copy_s, measured.convert_s)
        whole = paired_ratio(measured.copy_s, measured.whole_s)
        peak = max(measured.peak_bytes) / model_bytes
        rows += [
            Row(f"{name}: peak anonymous memory / model", f"{peak:.3f}",
                f"<= {MEMORY_GOAL}", peak <= MEMORY_GOAL),
            Row(f"{name}: speed / cp", interval_text(speed),
                f">= {SPEED_GOAL}", speed[0] >= SPEED_GOAL),
            Row(f"{name}: the same with Python's start and imports", interval_text(whole)),
        ]  # fmt: skip
    rows.append(Row("round trip: every tensor's bytes", "equal" if same else "differ",
                    "equal", same))  # fmt: skip
    title = f"Conversion of {model_bytes / 1e9:.2f} GB for TP {args.tp} x PP {args.pp} and back"
    raw = {"hf_to_megatron": vars(there), "megatron_to_hf": vars(again), "bytes": model_bytes}
    report(title, rows, raw=raw, started_on=started_on, out=args.out)
    return int(not all(row.met is not False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
