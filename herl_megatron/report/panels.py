"""Which panels the report has, in which chapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from herl_megatron.observability.peaks import TRAINER_PHASES, peak_metric
from herl_megatron.report.runs import AXIS, RunGroup
from herl_megatron.rubrics.judge_stats import FAILURES

_MAX_PANELS = 30


@dataclass(frozen=True)
class Panel:
    """One metric of training as a line and, where given, one of evaluation as points.

    `share` fixes the y axis to 0..1; `from_zero` lets it begin at 0. `over` names the metric on the
    x axis, with its label; empty for the steps. `even_zero`: also drawn if it is 0 throughout.
    """

    title: str
    train: str
    held_out: str = ""
    share: bool = False
    from_zero: bool = False
    over: str = ""
    x_label: str = "step"
    even_zero: bool = False


@dataclass(frozen=True)
class Chapter:
    """A picture of several panels with what there is to know when reading it."""

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]


CHAPTERS = (
    Chapter(
        "learning",
        "Learning",
        "Rewards of the policy's own samples: no bonus, no revisions.",
        (
            Panel("mean reward", "reward/mean", "eval/reward", from_zero=True, even_zero=True),
            Panel(
                "all criteria satisfied", "reward/all_satisfied", "eval/all_satisfied", share=True,
                even_zero=True,
            ),
            Panel("mean reward over time", "reward/mean", "eval/reward", from_zero=True,
                  over="axis/hours", x_label="hours in steps"),
            Panel("mean reward over sampled tokens", "reward/mean", "eval/reward", from_zero=True,
                  over="axis/tokens", x_label="tokens sampled, revisions too"),
            Panel("SFT loss", "sft/loss", from_zero=True),
            Panel("DPO loss", "dpo/loss", from_zero=True),
            Panel("pairs whose chosen answer is ahead", "dpo/accuracy", share=True),
            Panel("reward of chosen minus rejected", "dpo/margin"),
            Panel("reward of chosen answers", "dpo/chosen_reward"),
            Panel("reward of rejected answers", "dpo/rejected_reward"),
        ),
    ),
    Chapter(
        "hindsight",
        "Hindsight",
        "Counts per step. Gain: mean of revision minus draft reward over the scored revisions of a"
        " step; a step without one has no point.",
        (
            Panel("failed drafts shown as experience", "hindsight/experiences", from_zero=True),
            Panel("revisions that joined training", "hindsight/accepted", from_zero=True),
            Panel("share of revisions that joined", "derived/accepted_share", share=True),
            Panel("gain of a revision over its draft", "hindsight/gain"),
            Panel("bonus reward paid, sum", "hindsight/bonus_sum", from_zero=True),
            Panel("experiences too long", "hindsight/experiences_too_long", from_zero=True),
            Panel("failed responses replayed", "hindsight/replays", from_zero=True),
            Panel("failures that cannot be replayed", "hindsight/replays_impossible",
                  from_zero=True),
        ),
    ),
    Chapter(
        "improve",
        "Self-improvement at test time",
        "Steps are rounds: the best answer so far of each trajectory, and what all of them have"
        " sampled. Best of N: N samples of each prompt, or the smallest N that samples as many"
        " tokens.",
        (
            Panel("mean reward", "improve/reward", from_zero=True),
            Panel("the same, best of N samples", "best_of_n/reward", from_zero=True),
            Panel("the same, best of N at equal tokens", "best_of_n_tokens/reward",
                  from_zero=True),
            Panel("all criteria satisfied", "improve/all_satisfied", share=True),
            Panel("the same, best of N samples", "best_of_n/all_satisfied", share=True),
            Panel("the same, best of N at equal tokens", "best_of_n_tokens/all_satisfied",
                  share=True),
            Panel("tokens sampled", "improve/tokens", from_zero=True),
            Panel("revisions asked for", "improve/revisions", from_zero=True),
            Panel("revisions and samples that became best", "improve/accepted", from_zero=True),
            Panel("responses without a score", "improve/unscored", from_zero=True),
        ),
    ),
    Chapter(
        "optimisation",
        "Optimisation",
        "Means over a step's optimizer steps. Importance ratio: the policy now over the policy at"
        " the step's start. Revision ratio: the policy over `hindsight.behavior`. Mismatch"
        " weight: the trainer's probability of a sampled token over the engine's.",
        (
            Panel("loss", "train/loss"),
            Panel("loss of sampled rows", "train/loss_policy"),
            Panel("loss of revision rows", "train/loss_hindsight"),
            Panel("gradient norm", "train/grad_norm", from_zero=True),
            Panel("entropy, nats per token", "train/entropy", from_zero=True),
            Panel("KL to the reference", "train/kl", from_zero=True),
            Panel("KL, start of step to now", "train/kl_old_new", from_zero=True),
            Panel("clip fraction", "train/clip_fraction", from_zero=True),
            Panel("importance ratio, mean", "train/ratio_mean"),
            Panel("revision ratio, mean", "train/revision_ratio_mean", from_zero=True),
            Panel("mismatch weight, mean", "train/mismatch_mean"),
            Panel("mismatch weight, max", "train/mismatch_max"),
            Panel("mismatch weights cut at the cap", "train/mismatch_truncated", from_zero=True),
            Panel("KL, engine to trainer", "train/mismatch_kl", from_zero=True),
            Panel("parity gate: mean |difference|", "parity/mean", from_zero=True),
            Panel("parity gate: max |difference|", "parity/max", from_zero=True),
            Panel("learning rate", "train/lr", from_zero=True),
            Panel("busiest expert's tokens / mean", "train/expert_load_max"),
            Panel("experts without a token", "train/experts_idle", from_zero=True),
            Panel("SFT gradient norm", "sft/grad_norm", from_zero=True),
            Panel("SFT learning rate", "sft/lr", from_zero=True),
            Panel("DPO gradient norm", "dpo/grad_norm", from_zero=True),
            Panel("DPO learning rate", "dpo/lr", from_zero=True),
            Panel("log-prob of chosen answers", "dpo/chosen_log_prob"),
            Panel("log-prob of rejected answers", "dpo/rejected_log_prob"),
        ),
    ),
    Chapter(
        "rollouts",
        "Rollouts and scoring",
        "Unscored responses are masked from loss and baseline, never given a reward.",
        (
            Panel(
                "response length, tokens", "rollout/response_tokens", "eval/response_tokens",
                from_zero=True,
            ),
            Panel("cut at the token limit", "rollout/truncated", from_zero=True),
            Panel("unscored share of rollouts", "derived/unscored_share", from_zero=True),
            Panel("unscored revisions", "scoring/revisions_unscored", from_zero=True),
            Panel("groups without spread", "train/groups_zero_spread", from_zero=True),
            Panel("groups with too few scores", "train/groups_too_few", from_zero=True),
            Panel("sampled tokens per step", "rollout/tokens", from_zero=True),
            Panel("revision tokens per step", "rollout/revision_tokens", from_zero=True),
            Panel("age of tokens, weight versions", "rollout/staleness_mean", from_zero=True),
            Panel("oldest token, weight versions", "rollout/staleness_max", from_zero=True),
            Panel("responses over several versions", "rollout/resumed", from_zero=True),
            Panel("tokens left for the next step", "rollout/carried_tokens", from_zero=True),
            Panel("padded / real tokens in training", "train/padding_ratio"),
        ),
    ),
    Chapter(
        "step_time",
        "Time within a step, seconds",
        "The rollout phase is what the step waited for its rollouts; exposed scoring the part in"
        " which nothing was generated. Pause: from the last token before a weight sync to the first"
        " after it.",
        (
            Panel("whole step", "time/total_s", from_zero=True),
            Panel("rollout phase", "time/rollout_s", from_zero=True),
            Panel("training", "time/train_s", from_zero=True),
            Panel("generation in flight", "time/generation_s", from_zero=True),
            Panel("scoring in flight", "time/scoring_s", from_zero=True),
            Panel("scoring exposed", "time/scoring_exposed_s", from_zero=True),
            Panel("weight sync pause", "weight_sync/pause_s", from_zero=True),
        ),
    ),
    Chapter(
        "machines",
        "Rates, memory and queues",
        "Rates per device: a GPU, or an engine process on the CPU. Memory of the process that holds"
        " most; KV cache and requests at the fullest moment of a step.",
        (
            Panel("tokens/s", "perf/tokens_per_s", from_zero=True),
            Panel("sampled tokens/s and device", "perf/rollout_tokens_per_s_per_device",
                  from_zero=True),
            Panel("trained tokens/s and device", "perf/train_tokens_per_s_per_device",
                  from_zero=True),
            Panel("MFU of training", "perf/mfu", from_zero=True),
            Panel("TFLOP/s and device in training", "perf/train_tflops_per_s_per_device",
                  from_zero=True),
            Panel("weight sync, GB/s", "perf/weight_sync_gb_per_s", from_zero=True),
            Panel("KV cache in use", "engine/kv_cache", share=True),
            Panel("requests in the batches", "engine/running", from_zero=True),
            Panel("requests behind them", "engine/waiting", from_zero=True),
            Panel("trainer, GPU memory, GiB", "memory/trainer_device_gib", from_zero=True),
            Panel("engine, GPU memory, GiB", "memory/engine_device_gib", from_zero=True),
            Panel("trainer, host memory, GiB", "memory/trainer_host_gib", from_zero=True),
            Panel("engine, host memory, GiB", "memory/engine_host_gib", from_zero=True),
            Panel("driver, host memory, GiB", "memory/driver_host_gib", from_zero=True),
            *(
                Panel(f"trainer, GPU, {phase}, GiB", peak_metric("device", phase), from_zero=True)
                for phase in TRAINER_PHASES
            ),
            *(
                Panel(f"trainer, host, {phase}, GiB", peak_metric("host", phase), from_zero=True)
                for phase in TRAINER_PHASES
            ),
        ),
    ),
    Chapter(
        "judge",
        "Judge",
        "Per step. Latencies are of answered calls.",
        (
            Panel("calls", "judge/calls", from_zero=True),
            Panel("calls that were repeated", "judge/retries", from_zero=True),
            Panel("judgements from the cache", "judge/cache_hits", from_zero=True),
            Panel("units without a verdict", "judge/unjudged", from_zero=True),
            Panel("median latency, s", "judge/latency_p50_s", from_zero=True),
            Panel("95th percentile of latency, s", "judge/latency_p95_s", from_zero=True),
            Panel("tokens in", "judge/tokens_in", from_zero=True),
            Panel("tokens out", "judge/tokens_out", from_zero=True),
            Panel("cost", "judge/cost", from_zero=True),
            Panel("seconds paused", "judge/paused_s", from_zero=True),
            *(
                Panel(f"failures: {kind.replace('_', ' ')}", f"judge/failures_{kind}",
                      from_zero=True)
                for kind in FAILURES
            ),
        ),
    ),
)  # fmt: skip
# Bookkeeping that says nothing as a curve; other metrics unknown here get panels of their own.
_NOT_DRAWN = {
    "weight_sync/version", "weight_sync/bytes", "train/rows", "train/tokens", "train/micro_batches",
    "train/row_tokens", "train/sampled_tokens", "train/revision_tokens", "hindsight/revisions",
    "hindsight/copied", "scoring/unscored", "eval/unscored", "train/optimizer_steps_empty",
    "sft/sampled_tokens", "sft/row_tokens", "sft/tokens", "sft/rows", "sft/micro_batches",
    "sft/padding_ratio", "dpo/row_tokens", "dpo/tokens", "dpo/rows", "dpo/micro_batches",
    "dpo/padding_ratio", "improve/redrawn", "improve/answered", "improve/samples",
    "improve/prompt_tokens", "best_of_n/answered", "best_of_n/samples", "best_of_n/tokens",
    "best_of_n/prompt_tokens", "best_of_n_tokens/answered", "best_of_n_tokens/samples",
    "best_of_n_tokens/tokens", "best_of_n_tokens/prompt_tokens", "parity/tokens",
    "rollout/stale_tokens", "rollout/carried_groups", "time/pipeline_s", "time/rows_s",
    "perf/rollout_tokens_per_s", "perf/train_tokens_per_s", "judge/pauses", "judge/shared",
    "judge/judged", "judge/unquoted", "judge/addressed",
    "time/weight_sync_s", "time/checkpoint_s", "time/evaluate_s", "time/turns_s", "time/other_s",
}  # fmt: skip


def chapters_for(groups: Sequence[RunGroup]) -> list[Chapter]:
    """The chapters with the panels that have data, and one of whatever else was logged.

    A panel that would be a flat zero is named in its chapter's note instead of drawn.
    """
    logged = _names(groups, lambda value: True)
    above_zero = _names(groups, lambda value: value != 0)
    axes = {name for name in logged if name.startswith(AXIS)}
    checks, more = _chapters_of_the_rest(logged - axes)
    shown = []
    for chapter in (*CHAPTERS[:2], checks, *CHAPTERS[2:], more):
        there = [
            panel
            for panel in chapter.panels
            if logged & {panel.train, panel.held_out} and panel.over in {"", *axes}
        ]
        panels = [p for p in there if p.even_zero or above_zero & {p.train, p.held_out}]
        flat = [panel.title for panel in there if panel not in panels]
        note = f"{chapter.note} 0 throughout: {', '.join(flat)}." if flat else chapter.note
        shown += _in_parts(replace(chapter, note=note, panels=tuple(panels)))
    return shown


def _chapters_of_the_rest(logged: set[str]) -> tuple[Chapter, Chapter]:
    """One of all checks that were logged, one of what no chapter has."""
    known = {name for c in CHAPTERS for panel in c.panels for name in (panel.train, panel.held_out)}
    checked = {name for name in logged if name.startswith(("check/", "eval/check/"))}
    checks = sorted({name.partition("check/")[2] for name in checked})
    rest = sorted(logged - known - checked - _NOT_DRAWN)
    return (
        Chapter(
            "checks",
            "Satisfaction by check",
            "Share of scored responses that satisfy the check, where a rubric asks for it. Training"
            " rollouts are pooled over windows of a twelfth of the run.",
            tuple(
                Panel(n, f"check/{n}", f"eval/check/{n}", share=True, even_zero=True)
                for n in checks
            ),
        ),
        Chapter(
            "more",
            "More metrics",
            "By the name under which they were logged.",
            tuple(Panel(name, name) for name in rest),
        ),
    )  # fmt: skip


def _names(groups: Sequence[RunGroup], wanted: Callable[[float], bool]) -> set[str]:
    """Metrics of which some run has a number that is wanted."""
    return {
        name
        for group in groups
        for run in group.runs
        for name, series in run.metrics.items()
        if any(isfinite(value) and wanted(value) for value in series.values())
    }


def _in_parts(chapter: Chapter) -> list[Chapter]:
    """The chapter, or several of at most `_MAX_PANELS` panels; none without a panel."""
    parts = [
        chapter.panels[start : start + _MAX_PANELS]
        for start in range(0, len(chapter.panels), _MAX_PANELS)
    ]
    if len(parts) == 1:
        return [chapter]
    return [
        replace(chapter, name=f"{chapter.name}_{n}", title=f"{chapter.title} ({n})", panels=part)
        for n, part in enumerate(parts, start=1)
    ]
