"""One training step on every parallel layout against plain PyTorch, and how long a step takes.

    python tools/bench/check_layouts.py                 # all layouts up to 4 ranks, fp32 on CPU
    python tools/bench/check_layouts.py --no-speed

Prints, for each (TP, PP, DP), with sequence parallelism (SP), an interleaved pipeline (VPP) and
context parallelism (CP), some also with packed rows: the loss and gradient norm of the HeRL loss on
one batch of rows and their relative differences to the Hugging Face model in plain PyTorch; then
milliseconds per optimizer step of the quickstart's model size. Exit status 1 if a difference is
above 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from rich.console import Console
from rich.table import Table

from tests.distributed import tiny_models
from tests.distributed.train_case import (
    LAYOUTS,
    Case,
    make_rows,
    plain_steps,
    run_case,
    with_log_probs,
)

LIMIT = 1e-5
PACKED_LAYOUTS = ("TP1 PP1 DP1", "TP2 DP2 SP", "CP2", "TP2 CP2 SP", "PP2 CP2", "CP2 DP2")
SPEED_LAYOUTS = ("TP1 PP1 DP1", "TP2", "DP2")
"""No PP: three layers do not split over two stages."""


def small_case(name: str, folder: str) -> Case:
    """A tiny model with random weights and 24 rows, a quarter of them revisions."""
    model = tiny_models.save(name, Path(folder))
    rows = make_rows(24, vocab=tiny_models.VOCAB, seed=1)
    rows, old, ref = with_log_probs(model, rows, seed=2)
    return Case(folder, rows, old, ref)


def check_layouts(name: str, console: Console) -> float:
    """Print the table of one model; returns the largest relative difference."""
    table = Table(title=f"{name}, fp32, one step of the HeRL loss")
    for column in ("layout", "loss", "gradient norm", "loss rel. diff", "norm rel. diff"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        case = small_case(name, folder)
        losses, norms, _ = plain_steps(tiny_models.build(name), case)
        table.add_row("plain PyTorch, HF model", f"{losses[0]:.8f}", f"{norms[0]:.8f}", "", "")
        packed = {f"{name} packed": LAYOUTS[name] | dict(packing=True) for name in PACKED_LAYOUTS}
        for layout, keys in (LAYOUTS | packed).items():
            (metrics,) = run_case(case.on(**keys)).metrics
            loss_off = abs(metrics["loss"] / losses[0] - 1)
            norm_off = abs(metrics["grad_norm"] / norms[0] - 1)
            worst = max(worst, loss_off, norm_off)
            numbers = (f"{metrics['loss']:.8f}", f"{metrics['grad_norm']:.8f}")
            table.add_row(layout, *numbers, f"{loss_off:.1e}", f"{norm_off:.1e}")
    console.print(table)
    return worst


def speed_case(folder: str) -> Case:
    """The quickstart's model size and 128 rows of about 53 tokens."""
    config = transformers.Qwen2Config(
        vocab_size=657,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).float().save_pretrained(folder)
    rows = make_rows(128, vocab=657, seed=3, halves=(13, 41), masked=False)
    return Case(folder, rows, None, steps=6)


def check_speed(console: Console) -> None:
    """Print milliseconds per optimizer step, the first (warm-up) step left out."""
    table = Table(title="128 rows, 0.6M parameters, one CPU thread per rank")
    for column in ("layout", "ms per step (median)", "ms (fastest)", "micro-batches", "padding"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    with tempfile.TemporaryDirectory() as folder:
        case = speed_case(folder)
        for layout in SPEED_LAYOUTS:
            answer = run_case(case.on(micro_batch_tokens=8192, **LAYOUTS[layout]), limit_s=300)
            times = sorted(1e3 * seconds for seconds in answer.seconds[1:])
            metrics = answer.metrics[-1]
            table.add_row(
                layout,
                f"{times[len(times) // 2]:.0f}",
                f"{times[0]:.0f}",
                f"{metrics['micro_batches']:.0f}",
                f"{metrics['padding_ratio']:.3f}",
            )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen2_tied", "qwen3"])
    parser.add_argument("--no-speed", action="store_true", help="skip the timing table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    worst = max(check_layouts(name, console) for name in arguments.models)
    console.print(f"largest relative difference {worst:.1e}, limit {LIMIT:.0e}")
    if not arguments.no_speed:
        check_speed(console)
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
