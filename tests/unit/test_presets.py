"""The three presets side by side: what they set, and for each value in which `released` or `paper`
differs from `herl` a small case worked by hand where that value alone gives another number.

`CASES` has the case of each; a value that differs and has none is an error. The worked group has
the rewards 0.25, 0.5, 0.5, 0.0; its rollouts 1 and 2 are revised to 1.0 and 0.75, which pays the
bonuses 0.025 and 0.0125.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from herl_megatron.algos.losses import k3_kl, policy_loss
from herl_megatron.algos.reductions import token_weights, weighted_sum
from herl_megatron.batching.rows import build_rows, build_train_batch
from herl_megatron.batching.shards import block_mean_tokens
from herl_megatron.config.reference_compat import effective, revision_sampling
from herl_megatron.config.schema import Config
from herl_megatron.hindsight.experience import revision_prompt
from herl_megatron.hindsight.select import select_experiences
from herl_megatron.types import Scored, ScoredGroup
from tests.unit.algos.loss_cases import make_inputs
from tests.unit.hindsight.groups import PROMPT, make_group, make_score
from tests.unit.rollout.fakes import CharTokenizer

ROOT = Path(__file__).parents[2]
NAMES = ("herl", "released", "paper")
Values = dict[str, Any]
"""By dotted key."""


def values(name: str) -> Values:
    """What a preset sets."""
    read = yaml.safe_load((ROOT / f"configs/presets/{name}.yaml").read_text())
    return {f"{section}.{key}": v for section, keys in read.items() for key, v in keys.items()}


def config(given: Values) -> Config:
    """The defaults with these values."""
    sections: dict[str, dict[str, Any]] = {"model": {"path": "unused"}}
    for path, value in given.items():
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = value
    return Config.model_validate(sections)


PRESETS = {name: values(name) for name in NAMES}
HERL = config(PRESETS["herl"])
DIFFERENT = [
    (name, key)
    for name in NAMES[1:]
    for key in PRESETS["herl"]
    if PRESETS[name].get(key) != PRESETS["herl"][key]
]


def with_one(preset: str, *keys: str) -> Config:
    """`herl` with these values of another preset."""
    return config(PRESETS["herl"] | {key: PRESETS[preset][key] for key in keys})


def near(*numbers: float) -> Any:
    return pytest.approx(list(numbers), abs=5e-7)


def worked() -> ScoredGroup:
    return make_group([0.25, 0.5, 0.5, 0.0], [(1, 1.0), (2, 0.75)])


def rewards(group: ScoredGroup, found: Config, seed: int = 0) -> list[float | None]:
    """What the group's rows train on, in order."""
    built = build_rows(group, found.hindsight, found.algorithm, seed)
    return [row.reward for row in built.rows]


def advantages(group: ScoredGroup, found: Config) -> list[float]:
    built = build_rows(group, found.hindsight, found.algorithm, 0)
    return [row.advantage for row in built.rows]


def cut_revision() -> ScoredGroup:
    """Rewards 0.5 and 0.25; the first is revised to 1.0, which ends at the length limit."""
    group = make_group([0.5, 0.25], [(0, 1.0)])
    (one,) = group.revisions
    completion = replace(one.rollout.completion, finish_reason="length")
    return replace(
        group, revisions=(replace(one, rollout=replace(one.rollout, completion=completion)),)
    )


def hindsight_term(found: Config) -> float:
    """Two revised tokens, pi 0.6 and 0.1; mu 0.3 and 0.4, the old policy's 0.5 and 0.2; A 1 and 3;
    each token weighs a quarter."""
    out = policy_loss(make_inputs(), algorithm=found.algorithm, hindsight=found.hindsight)
    return float(out.parts["loss_hindsight"])


def mean_of(row_values: list[list[float]], found: Config) -> float:
    """The aggregation's number of one value per token."""
    counts = [len(row) for row in row_values]
    size = found.algorithm.block_rows
    means = None if size is None else torch.tensor(block_mean_tokens(counts, size))
    weights = token_weights(
        found.algorithm.aggregation,
        row_tokens=torch.tensor(counts),
        loss_tokens=sum(counts),
        loss_rows=len(counts),
        block_means=means,
    )
    flat = torch.tensor([value for row in row_values for value in row])
    return float(weighted_sum(flat, weights.repeat_interleave(torch.tensor(counts))))


# ---- one case for each value -------------------------------------------------------------------


def compat(found: Config) -> Any:
    """First samples' top-k holds for revisions too; the other values stand in the file."""
    rollout = found.rollout.model_copy(update={"top_k": 40})
    return revision_sampling(found.hindsight, rollout).top_k


def select(found: Config) -> Any:
    scores = [make_score(reward) for reward in (0.25, 0.5, 0.5, 0.0, 0.75)]
    return select_experiences(scores, found.hindsight, 0)


def of_ties(found: Config) -> Any:
    return select_experiences([make_score(0.5)] * 6, found.hindsight, 0)


def prompt_start(found: Config) -> Any:
    score = make_score(0.5)
    assert isinstance(score, Scored)
    ids = revision_prompt(PROMPT, "Hi.", score, found.hindsight, CharTokenizer())[1]
    return CharTokenizer().decode(ids)[:14]


def temperature(found: Config) -> Any:
    return revision_sampling(found.hindsight, found.rollout).temperature


def contexts(found: Config) -> Any:
    built = build_rows(worked(), found.hindsight, found.algorithm, 0)
    return [row.context_token_ids.tolist() for row in built.rows if row.off_policy]


def penalised(found: Config) -> Any:
    return rewards(make_group([0.8, 0.4], [(0, 0.0)]), found)


def equal(found: Config) -> Any:
    return rewards(make_group([0.25, 0.5, 0.0], [(1, 0.5)]), found)


def worse(found: Config) -> Any:
    return rewards(make_group([0.5, 0.25, 0.0], [(0, 0.25)]), found)


def cut(found: Config) -> Any:
    return rewards(cut_revision(), found)


def joined(found: Config) -> Any:
    return rewards(worked(), found, seed=1)  # which draws place 1, of the best draft


def none_qualified(found: Config) -> Any:
    return rewards(make_group([0.25, 0.5, 0.5, 0.0], [(1, 0.25)]), found)  # seed 0 draws place 3


def narrow(found: Config) -> Any:
    """Rewards 0.0002 apart: 1e-4 / (1.414214e-4 + eps)."""
    return advantages(make_group([0.5, 0.5002]), found)


def kl_of_flat_group(found: Config) -> Any:
    """Two groups of two rows of two tokens, the second without spread. k3 with ref = pi is 0 on the
    first's tokens; on the second's ref = 2 pi, so it is 2 - log 2 - 1 = 0.306853."""
    groups = [make_group([0.0, 1.0]), make_group([0.5, 0.5])]
    step = build_train_batch(
        groups, found.hindsight, found.algorithm,
        prompts_per_optimizer_step=2, run_seed=0, step=0,
    )  # fmt: skip
    ratios = [1.0 if row.advantage else 2.0 for row in step.batch.rows]
    kl = [k3_kl(torch.zeros(2), torch.full((2,), ratio).log()).tolist() for ratio in ratios]
    return mean_of(kl, found)


def blocks(found: Config) -> Any:
    """16 rows of one token with the value 0, then two rows of four tokens with the value 1: 8 of 24
    tokens; block means 0 and 1, weighing 16 and 2 of 18 rows."""
    return mean_of([[0.0]] * 16 + [[1.0] * 4] * 2, found)


def evaluation(found: Config) -> Any:
    return found.eval.temperature


def optimizer(found: Config) -> Any:
    """What they do to weights: `test_the_released_optimizer` of tests/distributed."""
    return found.optimizer.weight_decay, found.optimizer.beta2


BLOCKS = ("algorithm.aggregation", "algorithm.block_rows")
OPTIMIZER = ("optimizer.weight_decay", "optimizer.beta2")
# preset, its value(s), the case, what `herl` gives, what it gives with the value
CASES: list[tuple[str, tuple[str, ...], Any, Any, Any]] = [
    ("released", ("hindsight.reference_compat",), compat, -1, 40),
    ("released", ("hindsight.chat_template",), prompt_start, "user>Say hello", "Say hello.\n\nDr"),
    ("released", ("hindsight.temperature",), temperature, 0.3, 1.0),
    ("released", ("hindsight.clip_negative",), penalised, near(0.8, 0.4), near(0.76, 0.4)),
    ("released", ("hindsight.accept",), equal, near(0.25, 0.5, 0), near(0.25, 0.5, 0.5)),
    ("released", ("hindsight.join_cut",), cut, near(0.525, 0.25), near(0.525, 1.0)),
    ("released", ("hindsight.replace",), joined,
     near(0.25, 0.525, 0.5125, 1), near(0.25, 1, 0.5125, 0)),
    ("released", ("hindsight.no_qualified",), none_qualified,
     near(0.25, 0.5, 0.5, 0), near(0.25, 0.5, 0.5, 0.5)),
    ("released", ("hindsight.train_context",), contexts, [[1, 2, 3]], [[1, 2, 3, 91]]),
    # rho 2 and 1/4 under mu, 1.2 and 1/2 under the old policy; f(rho) = rho / (rho + 0.1)
    ("released", ("hindsight.behavior",), hindsight_term,
     pytest.approx(-(2 / 2.1 + 3 * 0.25 / 0.35) / 4), pytest.approx(-(12 / 13 + 3 * 5 / 6) / 4)),
    ("released", ("hindsight.gamma",), hindsight_term,
     pytest.approx(-(2 / 2.1 + 3 * 0.25 / 0.35) / 4), pytest.approx(-(2 / 3 + 3 * 0.2) / 4)),
    ("released", ("algorithm.advantage_eps",), narrow,
     near(-0.414214, 0.414214), near(-0.702142, 0.702142)),
    ("released", ("algorithm.zero_spread",), kl_of_flat_group, 0.0, pytest.approx(0.153426, 1e-5)),
    ("released", BLOCKS, blocks, pytest.approx(1 / 3), pytest.approx(1 / 9)),
    ("released", OPTIMIZER, optimizer, (0.0, 0.95), (0.01, 0.999)),
    ("released", ("eval.temperature",), evaluation, 1.0, 0.6),
    ("paper", ("hindsight.select",), select, (4,), (4, 1, 2, 0, 3)),
    ("paper", ("hindsight.max_experiences",), of_ties, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3)),
    ("paper", ("hindsight.clip_negative",), penalised, near(0.8, 0.4), near(0.76, 0.4)),
    ("paper", ("hindsight.accept",), worse, near(0.5, 0.25, 0), near(0.5, 0.25, 0.25)),
    ("paper", ("hindsight.join_cut",), cut, near(0.525, 0.25), near(0.525, 1.0)),
    ("paper", ("hindsight.replace",), joined,
     near(0.25, 0.525, 0.5125, 1), near(0.25, 0.525, 0.5125, 0, 1)),
    ("paper", ("hindsight.replace_top_n",), joined,
     near(0.25, 0.525, 0.5125, 1), near(0.75, 0.525, 0.5125, 1)),
    ("paper", ("hindsight.gamma",), hindsight_term,
     pytest.approx(-(2 / 2.1 + 3 * 0.25 / 0.35) / 4), pytest.approx(-(2 / 3 + 3 * 0.2) / 4)),
    ("paper", ("eval.temperature",), evaluation, 1.0, 0.6),
]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "keys", "case", "ours", "theirs"), CASES, ids=[f"{c[0]}-{c[1][0]}" for c in CASES]
)
def test_one_value_gives_another_number(
    preset: str, keys: tuple[str, ...], case: Any, ours: Any, theirs: Any
) -> None:
    assert case(HERL) == ours
    assert case(with_one(preset, *keys)) == theirs
    assert case(HERL) != case(with_one(preset, *keys))


def test_every_difference_has_its_case() -> None:
    assert sorted((preset, key) for preset, keys, *_ in CASES for key in keys) == sorted(DIFFERENT)


# ---- the files -----------------------------------------------------------------------------------


def test_all_set_the_same_keys() -> None:
    assert list(PRESETS["released"]) == list(PRESETS["paper"]) == list(PRESETS["herl"])


def test_the_methods_keys_are_all_there() -> None:
    """Of HeRL's sections every key, but for what belongs to a task, to another method, to a user's
    own code or to the engine's numbers."""
    elsewhere = {
        *("hindsight.enabled", "hindsight.method", "hindsight.method_options"),
        *("hindsight.prompt_style", "hindsight.prompt_file", "hindsight.replays_per_group"),
        *("hindsight.replay_integrity", "hindsight.replay_integrity_growth"),
        *("algorithm.advantage", "algorithm.advantage_options", "algorithm.loss"),
        *("algorithm.loss_options", "algorithm.kl_coef", "algorithm.entropy_coef"),
        *("algorithm.min_valid", "algorithm.mismatch_weight", "algorithm.mismatch_cap"),
    }
    every = {
        f"{name}.{key}"
        for name in ("hindsight", "algorithm")
        for key in type(getattr(HERL, name)).model_fields
    }
    assert {k for k in PRESETS["herl"] if k.startswith(("hindsight", "algorithm"))} == (
        every - elsewhere
    )


def test_herl_is_the_defaults() -> None:
    assert config(PRESETS["herl"]) == Config.model_validate({"model": {"path": "unused"}})


def test_released_says_itself_what_reference_compat_stands_for() -> None:
    released = config(PRESETS["released"])
    assert effective(released.hindsight, released.rollout) == released.hindsight


def test_paper_is_the_union_of_trajectories_and_all_revisions() -> None:
    """Each of the K = 4 is revised. Bonuses 0.05 * (0.25, -0.25, 0.5, 0.25); all eight rewards have
    the mean 0.2859375 and the standard deviation 0.277942."""
    paper = config(PRESETS["paper"])
    group = make_group([0.5, 0.25, 0.0, 0.0], [(0, 0.75), (1, 0.0), (2, 0.5), (3, 0.25)])
    assert select_experiences(group.scores, paper.hindsight, 0) == (0, 1, 2, 3)
    trained = [0.5125, 0.2375, 0.025, 0.0125, 0.75, 0.5, 0.25, 0.0]
    assert rewards(group, paper) == near(*trained)
    expected = [(reward - 0.2859375) / (0.277942 + 1e-4) for reward in trained]
    assert advantages(group, paper) == pytest.approx(expected, abs=1e-5)


def test_the_page_has_the_differences() -> None:
    """docs/algorithm.md, "Presets": a row for each key that is not the same in all three."""
    page = (ROOT / "docs/algorithm.md").read_text()
    section = page.split("\n## Presets\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.0-9]+)` \| (.*?) \| (.*?) \| (.*?) \|", section, re.M)
    shown = {key: [yaml.safe_load(cell.strip("`")) for cell in cells] for key, *cells in rows}
    different = {key for _, key in DIFFERENT}
    assert shown == {
        key: [PRESETS[name][key] for name in NAMES] for key in PRESETS["herl"] if key in different
    }
