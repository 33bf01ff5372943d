"""A plan as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from herl_megatron.config.schema import Config
from herl_megatron.plan.build import Plan
from herl_megatron.plan.judge import JudgePlan
from herl_megatron.plan.machines import GIB, Assumptions, Cluster
from herl_megatron.plan.rank_memory import LEARNING, RankPlan, engines_sleep
from herl_megatron.plan.remedies import Change

_MOST_COLUMNS = 6


def show_plan(console: Console, plan: Plan, config: Config, cluster: Cluster | None) -> None:
    """Print layout, memory per rank and phase, engine, host, time and the verdict."""
    console.print(_title(plan, config, cluster), highlight=False)
    console.print(*_ranks(plan, config, cluster), sep="\n", highlight=False)
    console.print(_engine(plan, config, cluster), highlight=False)
    host = "host memory of the fullest node" if cluster else "memory of this machine"
    console.print(_column(host, plan.host, plan.host_limit_bytes))
    if plan.seconds:
        console.print(_times(plan))
    if plan.judge is not None:
        console.print(_judge(plan.judge))
        console.print(escape(_judge_notes(plan.judge, config)), highlight=False)
    console.print(_assumed(plan))
    for warning in plan.warnings:
        console.print(f"[bold]note:[/] {escape(warning)}", highlight=False)
    for problem in plan.problems:
        console.print(f"[bold red]conflict:[/] {escape(problem)}", highlight=False)
    console.print(_verdict(plan, config, cluster), highlight=False)


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


def show_changes(console: Console, changes: Sequence[Change], plan: Plan, cluster: Cluster) -> None:
    """Print what would make `plan` fit, cheapest first."""
    if not changes:
        console.print(_none_found(plan, cluster), highlight=False)
        return
    console.print("[bold]fits with[/] (each was planned; cheapest first):")
    for number, change in enumerate(changes, 1):
        results = "changes what is sampled or trained" if change.changes_results else "same results"
        gpus = f"{change.gpus} GPUs" if change.gpus > cluster.gpus else "same GPUs"
        worst, engine = change.plan.worst.worst[1], change.plan.engine
        step = sum(change.plan.seconds.values())
        console.print(
            f"{number}. {escape(' '.join(change.overrides))}\n   {results}, {gpus};"
            f" needs {gib(worst)} GiB of {gib(plan.gpu_bytes)},"
            f" {engine.sequences} longest sequences at once, a step in about {step:.0f} s",
            highlight=False,
        )


def _none_found(plan: Plan, cluster: Cluster) -> str:
    text = "[bold]nothing was found that fits[/]: "
    if plan.only_host_misfits:
        return text + "give the nodes more memory, or see the note above for what fills it"
    return text + (
        "tried were the engines' share, their TP and FP8, recomputation, smaller micro-batches,"
        f" other layouts, and up to {4 * cluster.gpus} GPUs, three changes together at most: take"
        " GPUs with more memory, or a smaller model"
    )


def _ranks(plan: Plan, config: Config, cluster: Cluster | None) -> tuple[str, Table]:
    """What ranks hold, then the phases; stages that need the same share a column."""
    columns = _columns(plan.ranks)
    title = "GiB per rank"
    if cluster is not None:
        title += ", each phase with the engine on the same GPU"
    if len(columns) > _MOST_COLUMNS:
        title += f"; {len(columns)} kinds of ranks, shown are the first, the worst and the last"
        worst = [column for column in columns[1:-1] if plan.worst in column[1]]
        columns = [columns[0], *worst, columns[-1]]
    table = Table()
    table.add_column("ranks")
    for name, _ in columns:
        table.add_column(name, justify="right")
    ranks = [alike[0] for _, alike in columns]
    for name in ranks[0].held:
        table.add_row(name, *(gib(rank.held[name]) for rank in ranks))
    sleeps = cluster is not None and engines_sleep(config)
    table.add_row(
        "engine, awake" if sleeps else "engine", *(gib(plan.engine.budget_bytes) for _ in ranks)
    )
    if sleeps:
        table.add_row("engine, asleep", *(gib(rank.engine[LEARNING[0]]) for rank in ranks))
    table.add_row("activations", *(gib(rank.activations) for rank in ranks))
    table.add_row("working", *(gib(rank.working) for rank in ranks), end_section=True)
    for phase in ranks[0].phases:
        asleep = ", engine asleep" if sleeps and phase in LEARNING else ""
        table.add_row(f"in {phase}{asleep}", *(_phase(rank, phase, plan) for rank in ranks))
    return title, table


def _columns(ranks: Sequence[RankPlan]) -> list[tuple[str, list[RankPlan]]]:
    """Neighbours that need the same, under the numbers of their first and last rank."""
    columns = []
    for _, same in groupby(ranks, key=lambda rank: (rank.held, rank.phases)):
        alike = list(same)
        first, last = alike[0].ranks.partition("-")[0], alike[-1].ranks.rpartition("-")[2]
        columns.append((first if first == last else f"{first}-{last}", alike))
    return columns


def _phase(rank: RankPlan, phase: str, plan: Plan) -> str:
    size = gib(rank.phases[phase])
    worst = (phase, rank.phases[phase]) == plan.worst.worst
    return f"[bold]{size}[/]" if worst else size


def _engine(plan: Plan, config: Config, cluster: Cluster | None) -> str:
    engine, rollout = plan.engine, config.rollout
    text = (
        f"[bold]vLLM, {'one GPU of an engine' if cluster else 'one engine'}[/]: may take"
        f" {gib(engine.budget_bytes)} GiB: weights {gib(engine.weight_bytes)}, working"
        f" {gib(engine.working_bytes)}"
    )
    if engine.kv_cache_bytes <= 0:
        share = f"rollout.gpu_memory_utilization {rollout.gpu_memory_utilization:g}"
        return f"{text}, which leaves no room for a KV cache ({share})"
    text += f", KV cache {gib(engine.kv_cache_bytes)} ({engine.kv_bytes_per_token / 1024:.0f} KiB a"
    if not engine.sequences:
        return (
            f"{text} token): room for {engine.kv_cache_bytes // engine.kv_bytes_per_token} tokens,"
            f" less than the {engine.longest_tokens} of one longest sequence"
        )
    return (
        f"{text} token): together fit {engine.sequences} sequences of {engine.longest_tokens}"
        f" tokens, the longest, or {engine.mean_sequences} of the mean"
    )


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


def _judge(judge: JudgePlan) -> Table:
    table = Table()
    table.add_column("asked of the judge")
    for name in ("calls", "tokens in", "tokens out", "cost"):
        table.add_column(name, justify="right")
    works = {"one step": judge.step, "one evaluation": judge.evaluation}
    if judge.run is not None:
        works[f"the run, {judge.evaluations} evaluations"] = judge.run
    for name, work in works.items():
        counts = (work.calls, work.tokens_in, work.tokens_out)
        table.add_row(name, *(f"{count:,.0f}" for count in counts), f"{work.cost:,.2f}")
    return table


def _judge_notes(judge: JudgePlan, config: Config) -> str:
    """Where the numbers come from, and what a cap does with them."""
    text = f"counted in {judge.counted}; without retries and cached judgements"
    section = config.judge
    if not (section.price_in or section.price_out):
        text += "; no cost: judge.price_in and judge.price_out are 0"
    caps = [
        f"judge.{name} {value:g}"
        for name, value in (("max_calls", section.max_calls), ("max_cost", section.max_cost))
        if value
    ]
    if not caps:
        return text + "; no cap is set (judge.max_calls, judge.max_cost)"
    if judge.paused_after is None:
        return f"{text}; {' and '.join(caps)} is enough for the run"
    of = "" if config.train.steps is None else f" of {config.train.steps}"
    after = f"after about {judge.paused_after}{of} steps"
    return f"{text}; {' and '.join(caps)} pauses the run {after}"


def _assumed(plan: Plan) -> Table:
    table = Table()
    table.add_column("assumed, not measured", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("--rate")
    meanings = Assumptions.meanings()
    for name, value in plan.assumed.as_dict().items():
        table.add_row(meanings[name], f"{value:g}", f"{name}={value:g}")
    return table


def _verdict(plan: Plan, config: Config, cluster: Cluster | None) -> str:
    worst = plan.worst
    phase, needed = worst.worst
    text = f"most is needed by ranks {worst.ranks} in '{phase}': {gib(needed)} GiB"
    if plan.gpu_bytes:
        text += f" of {gib(plan.gpu_bytes)} (memory less the reserve)"
    if plan.engine.sequences < 1:
        text += "; the engine cannot hold one longest sequence"
    if not plan.host_fits:
        text += "; the host memory of a node is too small"
    if cluster is not None and engines_sleep(config):
        text += (
            "; counted as the run behaves: engines are asleep while the trainer learns"
            f" (rollout.sleep {config.rollout.sleep})"
        )
    return f"[bold green]fits[/]: {text}" if plan.fits else f"[bold red]does not fit[/]: {text}"


def gib(size: int) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}" if abs(size) < 100 * GIB else f"{size / GIB:.0f}"
