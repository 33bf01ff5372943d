"""The machines that a plan is made for, and the rates that its times are estimated from.

Nothing here was measured by this project: the GPUs are those of `herl_megatron.gpus`, shares are
round assumptions. Every number that a plan uses is printed with it and can be given on the command
line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from herl_megatron.gpus import GPUS, Gpu

GIB = 1 << 30


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines of `gpus_per_node` equal GPUs; host memory of one node, 0 if not known."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    host_bytes: int = 0

    @property
    def gpus(self) -> int:
        """GPUs altogether."""
        return self.nodes * self.gpus_per_node


def _rate(value: float, meaning: str) -> float:
    """An assumption's default and what it is, in words that a plan prints."""
    made: float = field(default=value, metadata={"meaning": meaning})
    return made


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted; each can be replaced by `name=value`."""

    reserve_gib: float = _rate(
        4.0, "GiB of each GPU left free: CUDA contexts, NCCL, workspaces, fragmentation"
    )
    engine_reserve_gib: float = _rate(
        1.0, "GiB of an engine's share for CUDA graphs and what vLLM does not count"
    )
    sleep_residue_gib: float = _rate(
        1.5, "GiB that a sleeping engine still holds while the trainer learns"
    )
    process_host_gib: float = _rate(
        3.0, "GiB of host memory of a trainer or engine process, before any model"
    )
    scorer_host_gib: float = _rate(
        0.3, "GiB of host memory of a scoring worker; all counted on the fullest node"
    )
    object_store_gib: float = _rate(1.0, "GiB of shared memory of Ray's object store on each node")
    process_cpu_gib: float = _rate(0.7, "GiB of a process where all of it runs on the CPU")
    train_mfu: float = _rate(0.35, "share of the GPU's peak that training reaches")
    forward_mfu: float = _rate(0.40, "share of the peak that log-probs and prompts reach")
    experts_mfu: float = _rate(0.3, "what experts leave of both shares (published H100 runs)")
    fp8_gain: float = _rate(1.2, "speed of an FP8 step over a bf16 one")
    decode_bandwidth: float = _rate(0.6, "share of the memory bandwidth that decoding reaches")
    decode_overhead_ms: float = _rate(5.0, "milliseconds of a decoding step whatever its size")
    sync_gb_per_s: float = _rate(
        5.0, "GB/s of weights from the trainer through the host into all engines"
    )
    sync_ipc_gb_per_s: float = _rate(
        10.0, "the same where they stay in GPU memory (weight_sync.transport)"
    )
    sync_fixed_s: float = _rate(1.0, "seconds of a weight sync whatever its size")
    score_s: float = _rate(0.05, "seconds that one scoring worker takes for a response's rules")
    judge_s: float = _rate(
        4.0, "seconds of one call of the judge, judge.concurrency of them together"
    )
    scoring_hidden: float = _rate(0.95, "share of the scoring that runs beside generation")
    mean_prompt: float = _rate(0.25, "mean prompt over data.max_prompt_tokens")
    mean_response: float = _rate(0.5, "mean response over rollout.max_response_tokens")
    longest_response: float = _rate(
        1.0, "a step's longest response over rollout.max_response_tokens"
    )
    revised: float = _rate(0.125, "revisions per first sample")
    judge_criteria: float = _rate(
        8.0, "criteria a response that are judged, where data is not here"
    )
    judge_fixed_tokens: float = _rate(
        500.0, "tokens of the judge's instructions in a call, prompt and response come on top"
    )
    judge_criterion_tokens_in: float = _rate(40.0, "tokens of a criterion in a call of the judge")
    judge_criterion_tokens_out: float = _rate(
        40.0, "tokens of the judge's answer about a criterion, with its quote"
    )

    def with_values(self, given: Sequence[str]) -> Assumptions:
        """Replace those given as `name=value`.

        Raises:
            ValueError: no such name, or no number.
        """
        known = {one.name for one in fields(self)}
        values: dict[str, float] = {}
        for item in given:
            name, _, text = item.partition("=")
            if name not in known:
                raise ValueError(
                    f"--rate {item!r}: no such rate; known: {', '.join(sorted(known))}"
                )
            try:
                values[name] = float(text)
            except ValueError as error:
                raise ValueError(f"--rate {item!r}: {text!r} is not a number") from error
        return replace(self, **values)

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """What each of them is, by name."""
        return {one.name: one.metadata["meaning"] for one in fields(cls)}

    def as_dict(self) -> dict[str, float]:
        """Every assumption by name."""
        return asdict(self)


_LARGEST_GIB = 1e6


def choose_gpu(name: str, gpus: Mapping[str, Gpu] = GPUS) -> Gpu:
    """A GPU by name, or `NUMBER_GiB` for one of that memory with an H100's rates.

    Raises:
        ValueError: neither.
    """
    if name in gpus:
        return gpus[name]
    number = name.removesuffix("_GiB").removesuffix("GiB")
    try:
        memory = float(number)
    except ValueError:
        memory = 0.0
    if not 0 < memory < _LARGEST_GIB:
        raise ValueError(
            f"--gpu {name!r}: one of {', '.join(gpus)}, one of a file (--gpus FILE), or a memory"
            " such as 48_GiB"
        )
    return replace(
        gpus["h100-80"], name=f"{memory:g} GiB (an H100's rates)", memory_bytes=int(memory * GIB)
    )
