"""The metrics that the code may log, and those that docs/metrics.md explains.

Names come from the code in two ways: string literals of the form `family/name` anywhere in the
package, and f-strings, of which each must be spelled out below (`expansions`) from what fills it:
the function that gives the names is called, or its literals are read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Literal

import torch

from herl_megatron.algos.loss_inputs import LossInputs, TokenRows
from herl_megatron.algos.loss_metrics import MAXIMA, MEANS
from herl_megatron.algos.losses import policy_loss, sft_loss
from herl_megatron.algos.losses_dpo import PairLogProbs, coefficient_loss, pair_loss
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from herl_megatron.improvement.trajectory import Outcome
from herl_megatron.observability.peaks import TRAINER_PHASES, peak_metric
from herl_megatron.rubrics import judge_stats, pool
from tests.pages import PACKAGE, ROOT

FAMILIES = (
    "reward", "eval", "rollout", "hindsight", "scoring", "judge", "train", "parity", "weight_sync",
    "time", "perf", "engine", "memory", "sft", "dpo", "improve", "best_of_n", "best_of_n_tokens",
)  # fmt: skip
_NAME = re.compile(rf"({'|'.join(FAMILIES)})(/[\w{{}}.]+)+")
_PLACES: tuple[Literal["host", "device"], ...] = ("host", "device")
NOT_OF_A_STEP = {"time/start_s", "time/export_s"}
"""Phases before the first step and after the last one, which have their seconds in summary.json."""


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))


def literals() -> set[str]:
    """`family/name` anywhere in the package; `{}` stands for what fills an f-string."""
    found, parts = set(), set()
    for tree in trees():
        for node in ast.walk(tree):  # an f-string before its parts
            if isinstance(node, ast.JoinedStr):
                parts |= set(node.values)
                texts = (str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
                found.add("".join(texts))
            elif isinstance(node, ast.Constant) and node not in parts:
                found.add(str(node.value))
    return {text for text in found if _NAME.fullmatch(text)}


def written_in(*functions: str) -> set[str]:
    """Keys of dict displays and members of list displays in functions, wherever they are."""
    found: set[str] = set()
    seen: set[str] = set()
    for tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name not in functions:
                continue
            seen.add(node.name)
            for inner in ast.walk(node):
                items: list[ast.expr | None] = []
                if isinstance(inner, ast.Dict):
                    items += inner.keys
                elif isinstance(inner, ast.List):
                    items += inner.elts
                found |= {str(i.value) for i in items if isinstance(i, ast.Constant)}
    assert seen == set(functions), f"{set(functions) - seen} is no function any more"
    return found


def phases() -> set[str]:
    """What `with timers("x")` of the training loop names, the rest and the whole."""
    calls = {
        call.args[0].value
        for tree in trees()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "timers"
        and isinstance(call.args[0], ast.Constant)
    }
    return {str(name) for name in calls} | {"other", "total"}


def _trainer() -> set[str]:
    return written_in("_step", "_global_sums", "ExpertLoad")


def _policy() -> set[str]:
    tokens = torch.zeros(1)
    inputs = LossInputs(
        tokens, tokens, tokens, tokens, tokens, tokens,
        off_policy=torch.zeros(1, dtype=torch.bool),
        weights=tokens,
        rows=TokenRows(torch.zeros(1, dtype=torch.int64), torch.ones(1)),
    )  # fmt: skip
    algorithm = AlgorithmConfig(kl_coef=0.1, entropy_coef=0.1)
    output = policy_loss(inputs, algorithm=algorithm, hindsight=HindsightConfig())
    known = set(MEANS) | set(MEANS.values()) | set(MAXIMA)
    return {*output.parts, *output.sums, *output.maxima} | known | _trainer()


def _sft() -> set[str]:
    output = sft_loss(torch.zeros(1), torch.ones(1))
    return {*output.parts, *output.sums} | _trainer()


def _dpo() -> set[str]:
    one = torch.zeros(1, dtype=torch.float64)
    pairs = pair_loss(
        PairLogProbs(one, one, one, one), name="sigmoid", beta=0.1, label_smoothing=0.0
    )
    second = coefficient_loss(torch.zeros(1), torch.zeros(1))
    return {*pairs.metrics(), *second.parts, *second.sums} | written_in("dpo_step") | _trainer()


def expansions() -> dict[str, set[str]]:
    """Every f-string that makes names, and the names that it makes."""
    arms = ("improve", "best_of_n", "best_of_n_tokens")
    return {
        "train/{}": {f"train/{name}" for name in _policy()},
        "sft/{}": {f"sft/{name}" for name in _sft()},
        "dpo/{}": {f"dpo/{name}" for name in _dpo()},
        "time/{}_s": {f"time/{phase}_s" for phase in phases()} - NOT_OF_A_STEP,
        "scoring/{}": {f"scoring/{name}" for name in pool._METRICS},
        "judge/{}": {f"judge/{name}" for name in judge_stats._COUNTS},
        "judge/failures_{}": {f"judge/failures_{kind}" for kind in judge_stats.FAILURES},
        "perf/{}_tokens_per_s": {f"perf/{side}_tokens_per_s" for side in ("rollout", "train")},
        "perf/{}_tokens_per_s_per_device": {
            f"perf/{side}_tokens_per_s_per_device" for side in ("rollout", "train")
        },
        "improve/{}": {f"{arm}/{field.name}" for arm in arms for field in fields(Outcome)}
        | {f"improve/{name}" for name in ("revisions", "redrawn", "accepted", "unscored")},
        "memory/trainer_{}/{}_gib": {
            peak_metric(where, phase) for where in _PLACES for phase in TRAINER_PHASES
        },
        "memory/engine_{}_gib": {f"memory/engine_{where}_gib" for where in _PLACES},
        "hindsight/{}": set(),  # the summary's sums of what is logged elsewhere
        **{
            f"{family}/{of}/{{}}": {f"{family}/{of}/NAME"}
            for family in ("reward", "eval")
            for of in ("check", "credit", "source")
        },
        "eval/benchmark/{}": {"eval/benchmark/NAME"},
    }


def from_code() -> set[str]:
    """What may be logged; AssertionError for an f-string that nobody has spelled out."""
    found = literals()
    patterns = {name for name in found if "{}" in name}
    known = expansions()
    assert patterns <= set(known), f"spell out in `expansions`: {patterns - set(known)}"
    return (found - patterns).union(*(known[pattern] for pattern in patterns))


def from_page() -> set[str]:
    """The names in the first column of the page's tables."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w/]+)`", cell)}


def undocumented(names: Iterable[str]) -> set[str]:
    """Logged names that the page does not explain."""
    known = from_page()
    plain = {
        re.sub(r"^((?:reward|eval)/(?:check|credit|source|benchmark))/.*", r"\1/NAME", name)
        for name in names
    }
    return plain - known - {"step"}
