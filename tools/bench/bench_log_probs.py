"""Log-probs at a large vocabulary: peak memory over full float32 logits, time over plain PyTorch.

    python tools/bench/bench_log_probs.py --vocab 151936 --hidden 256

Plain PyTorch multiplies all hidden states with the output matrix and takes `log_softmax`. Both give
the entropy too, which training reports. Time is
measured in turns at `--time-tokens`, where the plain version still fits; memory of ours at
`--memory-tokens`, as what the process's peak resident size rises by (Linux), over the size that
full float32 logits would have. One rank; with TP the vocabulary of a rank is that much smaller.

Of 2,048 tokens in chunks of 512 the backward pass computes three quarters of the logits again: 3.75
products with the output matrix over 3. More tokens come nearer to 4.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from herl_megatron.algos.log_probs import token_log_probs
from tools.bench._bench import Row, interval_text, machine, paired_ratio, report
from tools.bench._out import new_file

_MEMORY_GOAL = 0.10
_FORWARD_GOAL = 1.05
_BOTH_GOAL = 1.25
LogProbs = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probs from full float32 logits; and the entropy, reported, without a gradient."""
    log_p = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)
    with torch.no_grad():
        log_p.exp().mul_(log_p).sum(-1).neg_()
    return log_p.gather(-1, targets[:, None])[:, 0]


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The product's, as training calls it: default chunk, with the entropy."""
    log_probs, _ = token_log_probs(hidden, weight, targets, vocab_size=len(weight))
    return log_probs


def forward_s(
    function: LogProbs, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> float:
    """Seconds of one forward pass without gradients."""
    with torch.no_grad():
        begin = time.perf_counter()
        function(hidden, weight, targets)
        return time.perf_counter() - begin


def both_s(
    function: LogProbs, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> float:
    """Seconds of one forward and backward pass."""
    hidden = hidden.detach().requires_grad_()
    weight = weight.detach().requires_grad_()
    begin = time.perf_counter()
    function(hidden, weight, targets).sum().backward()
    return time.perf_counter() - begin


def extra_bytes(call: Callable[[], object]) -> int:
    """What the peak of this process's resident size is above the size before the call."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"/proc/self/status has no {field}")


def main() -> None:
    """Parse arguments, measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--time-tokens", type=int, default=2048)
    parser.add_argument("--memory-tokens", type=int, default=8192)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args()
    started_on = machine()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
    weight = (torch.randn(arguments.vocab, arguments.hidden) * 0.05).to(dtype)
    hidden = torch.randn(arguments.memory_tokens, arguments.hidden).to(dtype)
    targets = torch.randint(0, arguments.vocab, (arguments.memory_tokens,))
    few = hidden[: arguments.time_tokens], weight, targets[: arguments.time_tokens]
    difference = (plain(*few) - ours(*few)).abs().max().item()

    full = arguments.memory_tokens * arguments.vocab * 4
    with torch.no_grad():
        forward_extra = extra_bytes(lambda: ours(hidden, weight, targets))
    # What every backward pass must hold, logits or not.
    gradients = hidden.nbytes + weight.nbytes
    both_extra = extra_bytes(lambda: both_s(ours, hidden, weight, targets)) - gradients

    times: dict[str, list[float]] = {"plain": [], "ours": [], "plain both": [], "ours both": []}
    for _ in range(arguments.repeats):
        times["plain"].append(forward_s(plain, *few))
        times["ours"].append(forward_s(ours, *few))
        times["plain both"].append(both_s(plain, *few))
        times["ours both"].append(both_s(ours, *few))
    forward = paired_ratio(times["ours"], times["plain"])
    both = paired_ratio(times["ours both"], times["plain both"])
    rows = [
        Row("largest difference of a log-prob", f"{difference:.1e}"),
        _memory_row("forward", forward_extra, full),
        _memory_row("forward and backward, without the gradients", both_extra, full),
        Row(
            "forward time over plain PyTorch",
            interval_text(forward),
            f"<= {_FORWARD_GOAL}x",
            forward[2] <= _FORWARD_GOAL,
        ),
        Row(
            "forward and backward time over plain PyTorch",
            interval_text(both),
            f"<= {_BOTH_GOAL}x",
            both[2] <= _BOTH_GOAL,
        ),
    ]
    raw = {"times_s": times, "forward_extra_bytes": forward_extra, "both_extra_bytes": both_extra}
    title = f"log-probs, vocabulary {arguments.vocab}, hidden {arguments.hidden}, {arguments.dtype}"
    report(title, rows, raw=raw | {"full_bytes": full}, started_on=started_on, out=arguments.out)


def _memory_row(what: str, extra: int, full: int) -> Row:
    share = extra / full
    shown = f"{share:.3f} ({extra / 2**20:.0f} of {full / 2**20:.0f} MiB)"
    return Row(
        f"{what}: memory over float32 logits", shown, f"<= {_MEMORY_GOAL}", share <= _MEMORY_GOAL
    )


if __name__ == "__main__":
    main()
