"""A plan as tables."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from herl_megatron.config.schema import Config
from herl_megatron.plan.build import Plan
from herl_megatron.plan.cluster import GIB, Cluster
from herl_megatron.plan.memory import RankPlan

_MOST_COLUMNS = 6


def show_plan(console: Console, plan: Plan, config: Config, cluster: Cluster | None) -> None:
    """Print layout, memory per rank and phase, engine, host, time and the verdict."""
    console.print(_title(plan, config, cluster), highlight=False)
    console.print(*_ranks(plan, cluster), sep="\n", highlight=False)
    console.print(_engine(plan, cluster), highlight=False)
    host = "host memory of the fullest node" if cluster else "memory of this machine"
    console.print(_column(host, plan.host, plan.host_limit_bytes))
    if plan.seconds:
        console.print(_times(plan))
        console.print(_assumed(plan), highlight=False)
    for warning in plan.warnings:
        console.print(f"[bold]note:[/] {escape(warning)}", highlight=False)
    for problem in plan.problems:
        console.print(f"[bold red]conflict:[/] {escape(problem)}", highlight=False)
    console.print(_verdict(plan), highlight=False)


def _title(plan: Plan, config: Config, cluster: Cluster | None) -> str:
    m, rollout = config.megatron, config.rollout
    where = "CPU"
    if cluster is not None:
        where = f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"
    experts = f" ETP {m.etp}" if m.expert_tensor_parallel else ""
    return (
        f"[bold]{escape(config.model.path)}[/]: {plan.parameters:,} parameters on {where}\n"
        f"trainer: TP {m.tensor_parallel} PP {m.pipeline_parallel} CP {m.context_parallel}"
        f" EP {m.expert_parallel}{experts} DP {m.data_parallel} = {m.world_size} ranks,"
        f" {m.precision}{' + fp8 ' + m.fp8 if m.fp8 else ''}, recompute {m.recompute};"
        f" {plan.micro_batches} micro-batches of {m.micro_batch_tokens} tokens per optimizer step\n"
        f"engines: {rollout.replicas} of TP {rollout.tensor_parallel}, each inside one node,"
        f" {rollout.quantization or rollout.dtype}"
    )


def _ranks(plan: Plan, cluster: Cluster | None) -> tuple[str, Table]:
    """What ranks hold, then the phases; stages that need the same share a column."""
    columns = []
    for _, same in groupby(plan.ranks, key=lambda rank: (rank.held, rank.phases)):
        alike = list(same)
        first, last = alike[0].ranks.partition("-")[0], alike[-1].ranks.rpartition("-")[2]
        columns.append((first if first == last else f"{first}-{last}", alike))
    title = "GiB per rank"
    if cluster is not None:
        title += ", the engine's share of the same GPU included in each phase"
    if len(columns) > _MOST_COLUMNS:
        title += f"; {len(columns)} kinds of ranks, shown are the first, the worst and the last"
        columns = [
            column
            for place, column in enumerate(columns)
            if place in (0, len(columns) - 1) or plan.worst in column[1]
        ]
    table = Table()
    table.add_column("ranks")
    for name, _ in columns:
        table.add_column(name, justify="right")
    ranks = [alike[0] for _, alike in columns]
    for name in ranks[0].held:
        table.add_row(name, *(gib(rank.held[name]) for rank in ranks))
    table.add_row("engine", *(gib(plan.engine.budget_bytes) for _ in ranks))
    table.add_row("activations", *(gib(rank.activations) for rank in ranks))
    table.add_row("working", *(gib(rank.working) for rank in ranks), end_section=True)
    for phase in ranks[0].phases:
        ends = phase == list(ranks[0].phases)[-1]
        sizes = (_phase(rank, phase, plan) for rank in ranks)
        table.add_row(f"in {phase}", *sizes, end_section=ends)
    for phase in ranks[0].asleep:
        table.add_row(f"in {phase}, engine asleep (*)", *(gib(r.asleep[phase]) for r in ranks))
    return title, table


def _phase(rank: RankPlan, phase: str, plan: Plan) -> str:
    size = gib(rank.phases[phase])
    worst = (phase, rank.phases[phase]) == plan.worst.worst
    return f"[bold]{size}[/]" if worst else size


def _engine(plan: Plan, cluster: Cluster | None) -> str:
    engine = plan.engine
    parts = f"weights {gib(engine.weight_bytes)}, working {gib(engine.working_bytes)}"
    text = (
        f"[bold]vLLM, {'one GPU of an engine' if cluster else 'one engine'}[/]: may take"
        f" {gib(engine.budget_bytes)} GiB: {parts}, KV cache {gib(engine.kv_cache_bytes)}"
        f" ({engine.kv_bytes_per_token / 1024:.0f} KiB a token): together fit"
        f" {engine.sequences} sequences of {engine.longest_tokens} tokens, the longest, or"
        f" {engine.mean_sequences} of the mean"
    )
    if plan.ranks[0].asleep:
        text += (
            f"\n(*) assumed, not measured: a sleeping engine holds"
            f" {gib(plan.sleep_residue_bytes)} GiB (--rate sleep_residue_gib=...)"
        )
    return text


def _column(title: str, sizes: Mapping[str, int], limit: int) -> Table:
    table = Table()
    table.add_column(title)
    table.add_column("GiB", justify="right")
    for name, size in sizes.items():
        if size:
            table.add_row(name, gib(size), end_section=name == list(sizes)[-1])
    total = sum(sizes.values())
    style = "bold red" if limit and total > limit else "bold"
    table.add_row("together", f"[{style}]{gib(total)}[/]")
    if limit:
        table.add_row("has", gib(limit))
    return table


def _times(plan: Plan) -> Table:
    total = sum(plan.seconds.values())
    table = Table()
    table.add_column("one step, estimated from the rates below")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, value in plan.seconds.items():
        last = name == list(plan.seconds)[-1]
        table.add_row(name, f"{value:.1f}", f"{value / total:.0%}", end_section=last)
    table.add_row("together", f"{total:.1f}", "")
    return table


def _assumed(plan: Plan) -> str:
    values = ", ".join(f"{name}={value:g}" for name, value in plan.assumed.as_dict().items())
    return f"assumed, not measured (change with --rate name=value): {values}"


def _verdict(plan: Plan) -> str:
    worst = plan.worst
    phase, needed = worst.worst
    text = f"most is needed by ranks {worst.ranks} in '{phase}': {gib(needed)} GiB"
    if plan.gpu_bytes:
        text += f" of {gib(plan.gpu_bytes)} (memory less the reserve)"
    if plan.engine.sequences < 1:
        text += "; the engine cannot hold one longest sequence"
    if not plan.host_fits:
        text += "; the host memory of a node is too small"
    if plan.fits:
        return f"[bold green]fits[/]: {text}"
    if plan.fits_asleep:
        text += "; it would fit if sleeping engines give back as much as is assumed (*)"
    return f"[bold red]does not fit[/]: {text}"


def gib(size: int) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}" if abs(size) < 100 * GIB else f"{size / GIB:.0f}"
