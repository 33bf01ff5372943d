"""The GPUs that a plan is made for, and the rates that its times are estimated from.

Nothing here was measured by this project: memory is what `nvidia-smi` reports as total, peaks and
bandwidths are the vendor's data sheets (dense, without sparsity), shares are round assumptions.
Every number that a plan uses is printed with it and can be given on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """A GPU for the plan: total memory, CUDA's compute capability, dense bf16 peak and memory
    bandwidth."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    bf16_tflops: float
    memory_gb_per_s: float


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100-80", 81559 << 20, (9, 0), 989, 3350),
        Gpu("h200-141", 143771 << 20, (9, 0), 989, 4800),
        Gpu("a100-80", 81920 << 20, (8, 0), 312, 2039),
        Gpu("a100-40", 40960 << 20, (8, 0), 312, 1555),
    )
}


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


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted; each can be replaced by `name=value`."""

    reserve_gib: float = 4.0
    """Not planned per GPU: two CUDA contexts, NCCL buffers, workspaces, fragmentation."""
    engine_reserve_gib: float = 1.0
    """Of an engine's share: CUDA graphs and what vLLM does not count as weights or activations."""
    sleep_residue_gib: float = 1.5
    """What a sleeping engine would still hold of its share; nothing that needs it to be true is
    said to fit."""
    process_host_gib: float = 3.0
    """Host memory of a trainer or engine process before any of the model."""
    scorer_host_gib: float = 0.3
    """Host memory of a scoring worker; all are counted on the fullest node."""
    object_store_gib: float = 1.0
    """Shared memory of Ray's object store on each node; a Ray that `herl` starts takes no more."""
    process_cpu_gib: float = 0.7
    """The same where all of it runs on the CPU."""
    train_mfu: float = 0.35
    """Share of the peak that training reaches."""
    forward_mfu: float = 0.40
    """Share of the peak of log-probs and prompts."""
    experts_mfu: float = 0.3
    """What experts leave of both shares: published H100 runs of sparse models reach 118 to 338
    TFLOP/s where dense ones reach 700 to 800."""
    fp8_gain: float = 1.2
    """Speed of an FP8 step over a bf16 one."""
    decode_bandwidth: float = 0.6
    """Share of the memory bandwidth that decoding reaches."""
    decode_overhead_ms: float = 5.0
    """Time of one decoding step that does not depend on sizes."""
    sync_gb_per_s: float = 5.0
    """Weights from the trainer through shared memory into all engines."""
    sync_ipc_gb_per_s: float = 10.0
    """The same where they stay in GPU memory (`weight_sync.transport`)."""
    sync_fixed_s: float = 1.0
    """Time of a weight sync that does not depend on sizes."""
    score_s: float = 0.05
    """One response's rubric in one scoring worker."""
    judge_s: float = 4.0
    """One call of the judge, where there is one; judge.concurrency of them run together."""
    scoring_hidden: float = 0.95
    """Share of the scoring that runs beside generation."""
    mean_prompt: float = 0.25
    """Mean prompt over data.max_prompt_tokens."""
    mean_response: float = 0.5
    """Mean response over rollout.max_response_tokens."""
    longest_response: float = 1.0
    """The step's longest response over rollout.max_response_tokens: nothing ends before it."""
    revised: float = 0.125
    """Revisions per first sample."""

    def with_values(self, given: Sequence[str]) -> Assumptions:
        """Replace those given as `name=value`.

        Raises:
            ValueError: no such name, or no number.
        """
        known = {field.name for field in fields(self)}
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

    def as_dict(self) -> dict[str, float]:
        """Every assumption by name."""
        return asdict(self)


def choose_gpu(name: str) -> Gpu:
    """A GPU by name, or `NUMBER_GiB` for one of that memory with an H100's rates.

    Raises:
        ValueError: neither.
    """
    if name in GPUS:
        return GPUS[name]
    number = name.removesuffix("_GiB").removesuffix("GiB")
    try:
        memory = float(number)
    except ValueError:
        memory = 0.0
    if memory <= 0:
        raise ValueError(f"--gpu {name!r}: one of {', '.join(GPUS)}, or a memory such as 48_GiB")
    return replace(GPUS["h100-80"], name=f"{memory:g} GiB", memory_bytes=int(memory * GIB))
