r"""One optimizer step on one GPU: Megatron in bf16 against a compiled Hugging Face step, and FP8.

    python tools/bench/bench_gpu_step.py --shape 1.5b --out step.json  # bf16 over HF, MFU
    python tools/bench/bench_gpu_step.py --shape 4096 --fp8 tensorwise blockwise --out step.json
    python tools/bench/bench_gpu_step.py --device cpu --shape tiny --tokens 256 --length 64 \
        --pairs 3

NOT RUN YET on any GPU; the last command is a dry run without one. A side that fails is left out and
named, the others are measured; a model that does not compile is measured uncompiled. Both sides
take the same rows (`--tokens` in sequences of `--length`), the same mean cross-entropy over all
tokens, activations in bf16, fp32 main weights, gradient clipping and Adam; the Hugging Face step is
the causal language model under bf16 autocast with SDPA and fused AdamW, model and loss compiled
together. Sides are measured in turns, synchronised, after `--warm-up` steps of each; only two sides
are on the GPU at a time. MFU is over `--peak-tflops` (H100 SXM in bf16 by default), counting causal
attention once and no recomputation. The goal for FP8 depends on the hidden size; it is what
`megatron.fp8_min_hidden` stands on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

# Two models with optimizers of 1.5B fill most of 80 GB: without holes between them.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from herl_megatron.batching.shards import make_shards
from herl_megatron.config.schema import (
    MegatronConfig,
    ModelConfig,
    OptimizerConfig,
)
from herl_megatron.device import (
    Device,
    check_precision,
    choose_device,
    release_cached_memory,
    transformer_engine_version,
)
from herl_megatron.fp8 import RECIPES
from herl_megatron.megatron.actor import MegatronActor
from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel
from herl_megatron.models.groups import Groups
from herl_megatron.types import TokenRow
from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file

Step = Callable[[], object]
# hidden, MLP, layers, heads, key heads, vocabulary; the first is Qwen2.5-1.5B.
SHAPES = {
    "1.5b": (1536, 8960, 28, 12, 2, 151_936),
    "1024": (1024, 4864, 24, 16, 4, 151_936),
    "2048": (2048, 11_008, 16, 16, 2, 151_936),
    "4096": (4096, 14_336, 4, 32, 8, 128_256),
    "tiny": (128, 256, 2, 2, 1, 1000),
}
_SHOWN = 60  # characters of a failure in the table; the JSON file has all
MFU_GOAL, HF_GOAL, LARGE_HIDDEN, LARGE_GOAL, SMALL_GOAL = 0.40, 1.0, 4096, 1.20, 0.98


def write_config(folder: Path, shape: str, length: int) -> None:
    """The shape as a Qwen2 model with tied embeddings, without weights; they are drawn."""
    hidden, ffn, layers, heads, kv_heads, vocab = SHAPES[shape]
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def step_flops(shape: str, *, sequences: int, length: int) -> float:
    """Of forward and backward: 6 per matrix weight and token, and causal attention's two products,
    2 * 2 * length^2 / 2 per head dimension and layer, three times."""
    hidden, ffn, layers, heads, kv_heads, vocab = SHAPES[shape]
    head_dim = hidden // heads
    attention = hidden * head_dim * (heads + 2 * kv_heads) + heads * head_dim * hidden
    weights = layers * (attention + 3 * hidden * ffn) + vocab * hidden
    causal = 2 * length**2 * heads * head_dim * layers
    return sequences * (6.0 * weights * length + 3.0 * causal)


def draw_rows(shape: str, *, sequences: int, length: int) -> list[TokenRow]:
    """Random rows whose first token is the context."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SHAPES[shape][-1], (sequences, length)).astype(np.int32)
    return [
        TokenRow(
            prompt_id=str(number),
            context_token_ids=row[:1],
            response_token_ids=row[1:],
        )
        for number, row in enumerate(ids)
    ]


def megatron_step(
    folder: str, rows: Sequence[TokenRow], groups: Groups, *, fp8: str | None, tokens: int
) -> Step:
    """One supervised step of the product's actor."""
    megatron = MegatronConfig.model_validate(
        {"precision": "bf16", "fp8": fp8, "micro_batch_tokens": tokens, "packing": True}
    )
    if fp8 is not None:
        check_precision(groups.device, precision="bf16", fp8=fp8)
    actor = MegatronActor(
        model=ModelConfig(path=folder, random_init=True),
        megatron=megatron,
        optimizer=OptimizerConfig(),
        total_optimizer_steps=1,
        seed=0,
        groups=groups,
    )
    (shard,) = make_shards(rows, megatron=megatron)
    return lambda: actor.sft_step(shard)


def hf_step(folder: str, rows: Sequence[TokenRow], device: Device, *, compiled: bool) -> Step:
    """The same step of the Hugging Face model, a sequence at a time."""
    config = AutoConfig.from_pretrained(folder)
    make: Any = AutoModelForCausalLM.from_config
    with device.torch:
        model: Any = make(config, dtype=torch.float32, attn_implementation="sdpa")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.kind == "cuda")
    ids = torch.tensor(
        np.stack([np.concatenate([r.context_token_ids, r.response_token_ids]) for r in rows]),
        dtype=torch.int64,
        device=device.torch,
    )
    total = ids[:, 1:].numel()

    def loss_of(row: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum") / total

    run = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> None:
        for row in ids:
            with torch.autocast(device.kind, torch.bfloat16):
                loss = run(row[None])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def timed_s(step: Step, device: Device) -> float:
    """Seconds of one step, the device idle before and after."""
    wait = torch.cuda.synchronize if device.kind == "cuda" else int
    wait()
    begin = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begin


def in_turns(
    left: Step, right: Step, device: Device, args: argparse.Namespace
) -> list[list[float]]:
    """Seconds of `--pairs` steps of each, one after the other."""
    for step in (left, right):
        for _ in range(args.warm_up):
            timed_s(step, device)
    pairs = [[timed_s(step, device) for step in (left, right)] for _ in range(args.pairs)]
    return [list(side) for side in zip(*pairs, strict=True)]


def mfu_row(name: str, seconds: Sequence[float], flops: float, peak: float) -> Row:
    """Median share of the peak; a goal for bf16 alone."""
    share = flops / median(seconds) / (peak * 1e12)
    shown = f"{share:.1%}, {median(seconds) * 1e3:.1f} ms"
    goal = name == "bf16"
    return Row(
        f"{name}: MFU of bf16's peak, step", shown, f">= {MFU_GOAL:.0%}" if goal else "",
        share >= MFU_GOAL if goal else None,
    )  # fmt: skip


def ratio_row(what: str, slow: Sequence[float], fast: Sequence[float], goal: float) -> Row:
    """How many times as fast the second is; the interval's lower end has to reach the goal."""
    ratio = paired_ratio(slow, fast)
    return Row(what, interval_text(ratio), f">= {goal}x", ratio[1] >= goal)


@contextmanager
def apart(name: str, failed: dict[str, str]) -> Iterator[None]:
    """One side: what fails in it is written down and costs the other sides nothing."""
    try:
        yield
    except Exception as error:  # whatever a kernel, a compiler or the memory says
        failed[name] = f"{type(error).__name__}: {error}"
    finally:
        gc.collect()
        release_cached_memory()


def measure(args: argparse.Namespace, folder: str) -> tuple[list[Row], dict[str, Any]]:
    """bf16 alone, then against HF and against each FP8 recipe."""
    write_config(Path(folder), args.shape, args.length)
    sequences = args.tokens // args.length
    rows = draw_rows(args.shape, sequences=sequences, length=args.length)
    flops = step_flops(args.shape, sequences=sequences, length=args.length)
    device = choose_device(args.device)
    groups = init_parallel(
        MegatronConfig(precision="bf16"), rank=0, world_size=1,
        init_method=f"file://{folder}/store", device=device, seed=0,
    )  # fmt: skip
    large = SHAPES[args.shape][0] >= LARGE_HIDDEN
    table: list[Row] = []
    failed: dict[str, str] = {}
    raw: dict[str, Any] = {"flops": flops, "failed": failed}
    with apart("bf16", failed):
        bf16 = megatron_step(folder, rows, groups, fp8=None, tokens=args.length)
        raw["bf16"] = [timed_s(bf16, device) for _ in range(args.warm_up + args.pairs)]
        table.append(mfu_row("bf16", raw["bf16"][args.warm_up :], flops, args.peak_tflops))
        other: Step | None
        for compiled in (True, False):
            name = "compiled HF" if compiled else "HF"
            if compiled == args.no_compile or (not compiled and "compiled HF" in raw):
                continue
            with apart(name, failed):
                other = hf_step(folder, rows, device, compiled=compiled)
                ours, raw[name] = in_turns(bf16, other, device, args)
                raw[f"bf16 beside {name}"] = ours
                table.append(mfu_row(name, raw[name], flops, args.peak_tflops))
                table.append(ratio_row(f"bf16 over {name}, speed", raw[name], ours, HF_GOAL))
            other = None
        for fp8 in args.fp8:
            with apart(fp8, failed):
                other = megatron_step(folder, rows, groups, fp8=fp8, tokens=args.length)
                ours, raw[fp8] = in_turns(bf16, other, device, args)
                raw[f"bf16 beside {fp8}"] = ours
                table.append(mfu_row(fp8, raw[fp8], flops, args.peak_tflops))
                goal = LARGE_GOAL if large else SMALL_GOAL
                table.append(ratio_row(f"{fp8} over bf16, speed", ours, raw[fp8], goal))
            other = None
    table += [Row(f"{name}: failed", why[:_SHOWN]) for name, why in failed.items()]
    shutdown_parallel()
    return table, raw


def software(started_on: dict[str, Any]) -> None:
    """Add what decides which kernels run."""
    started_on["cudnn"] = torch.backends.cudnn.version()
    started_on["flash_attn"] = importlib.util.find_spec("flash_attn") is not None
    started_on["transformer_engine"] = transformer_engine_version()
    if torch.cuda.is_available():
        started_on["gpu"] = torch.cuda.get_device_name()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--fp8", nargs="*", choices=RECIPES, default=[])
    parser.add_argument("--tokens", type=int, default=16_384, help="of one step")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--no-compile", action="store_true", help="Hugging Face step without")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    args = parser.parse_args()
    if args.tokens % args.length:
        parser.error(f"--tokens {args.tokens} is not a multiple of --length {args.length}")
    started_on = machine()
    software(started_on)
    with tempfile.TemporaryDirectory() as folder:
        table, raw = measure(args, folder)
    title = f"one optimizer step, {args.shape}, {args.tokens} tokens in sequences of {args.length}"
    report(title, table, raw=raw, started_on=started_on, out=args.out)


if __name__ == "__main__":
    main()
