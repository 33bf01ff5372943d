"""What a hindsight method is asked, and what is refused of one from outside."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herl_megatron.batching.rows import build_rows, build_train_batch
from herl_megatron.config.hooks import OptionValue
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig, RolloutConfig
from herl_megatron.hindsight.herl import HeRL
from herl_megatron.hindsight.hir import HiR
from herl_megatron.hindsight.known_methods import (
    SHARED_KEYS,
    check_rows,
    ignored_keys,
    open_method,
    problems_of,
)
from herl_megatron.hindsight.method import (
    HindsightMethod,
    Join,
    Proposal,
    check_joins,
    check_proposal,
    plain_join,
)
from herl_megatron.run.inputs import _check_method
from herl_megatron.types import HindsightExperience, Prompt, Replay, RowOrigin
from tests.unit.hindsight.groups import PROMPT, make_group

IDS = np.array([1, 2], np.int32)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


PROPOSE = "def propose(self, group, context): ...\n"
BROKEN = [
    ("pass", "has no `propose`; write"),
    ("async def propose(self, group, context): ...", "propose must be a plain function"),
    ("def propose(self, group): ...", "propose cannot be called with 2 arguments"),
    (PROPOSE + "def join(self): ...", "join cannot be called with 2 arguments"),
    (PROPOSE + "keys = ['alpha']", "keys is a list; make it a frozenset"),
    (PROPOSE + "def __init__(self, config): pass", r"does not call super\(\).__init__\(config\)"),
    (PROPOSE + "def __init__(self, config): raise KeyError('x')", "failed at .*: KeyError: 'x'"),
    (PROPOSE + "def __init__(self, config): raise SystemExit(3)", "failed at .*: SystemExit: 3"),
    (PROPOSE + "def problems(self, rollout): return None", "problems failed: TypeError"),
    (PROPOSE + "def problems(self, rollout): raise OSError('y')", "problems failed at .* y"),
]


@pytest.mark.parametrize(("body", "said"), BROKEN, ids=[body for body, _ in BROKEN])
def test_a_method_that_cannot_work_is_refused_before_anything_starts(
    own: Path, body: str, said: str
) -> None:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (own / "own_method.py").write_text(
        f"from herl_megatron.hindsight.method import HindsightMethod\n"
        f"class Mine(HindsightMethod):\n{lines}"
    )
    with pytest.raises(ValueError, match=rf"hindsight\.method: own_method:Mine.*{said}"):
        found = HindsightConfig(method="own_method:Mine")
        method = open_method(found)
        assert method is not None
        problems_of(method, found, RolloutConfig())


def test_a_failing_look_at_the_rows_is_said_with_its_name(own: Path) -> None:
    (own / "own_method.py").write_text(
        "from herl_megatron.hindsight.method import HindsightMethod\n"
        "class Mine(HindsightMethod):\n"
        "    def propose(self, group, context): ...\n"
        "    def check_prompts(self, prompts): return 1 / 0\n"
        "def plain(config): ...\n"
    )
    with pytest.raises(ValueError, match=r"own_method:Mine\.check_prompts failed at .*:4: ZeroDiv"):
        check_rows(HindsightConfig(method="own_method:Mine"), [PROMPT])
    with pytest.raises(ValueError, match="own_method:plain is no class that derives from"):
        check_rows(HindsightConfig(method="own_method:plain"), [PROMPT])


def test_names_are_known_in_one_place() -> None:
    assert isinstance(open_method(HindsightConfig()), HeRL)
    assert isinstance(open_method(HindsightConfig(method="replay")), HiR)
    assert open_method(HindsightConfig(enabled=False, method="no:such")) is None
    with pytest.raises(ValueError, match="'replai' is not one of revise, replay; a method of your"):
        open_method(HindsightConfig(method="replai"))
    with pytest.raises(ValueError, match="method_options is for a method of your own; 'revise'"):
        open_method(HindsightConfig(method_options={"count": 1}))


@pytest.mark.parametrize(
    ("bad", "said", "good"),
    [
        ({"replace": "append"}, "replace_top_n 1 would leave out some of up to 4",
         {"replace": "append", "replace_top_n": 4}),
        ({}, "set replace_top_n to null", {"replace_top_n": None}),
        # Both of two experiences twice is as many as there are places.
        ({"replace_top_n": None, "revisions_per_experience": 2},
         r"replace 'worst' has places for 4 \(rollout.group_size\) of up to 8 revisions",
         {"replace_top_n": None, "revisions_per_experience": 2, "max_experiences": 2}),
    ],
)  # fmt: skip
def test_all_revisions_are_not_cut_to_some(
    bad: dict[str, Any], said: str, good: dict[str, Any]
) -> None:
    rollout = RolloutConfig(group_size=4)
    (problem,) = HeRL(HindsightConfig(accept="all", **bad)).problems(rollout)
    assert re.search(said, problem)
    assert list(HeRL(HindsightConfig(accept="all", **good)).problems(rollout)) == []
    assert list(HeRL(HindsightConfig(**bad)).problems(rollout)) == []


def test_a_group_grows_by_as_many_rows_as_it_has_revisions_or_fewer() -> None:
    """For the plan: what `replace_top_n` says, else what is drawn at most."""
    union: dict[str, Any] = {"replace": "append", "accept": "all", "replace_top_n": None}
    assert HeRL(HindsightConfig(**union)).rows_added is None
    assert HeRL(HindsightConfig(**union, max_experiences=3)).most_revisions(8) == 3
    assert HeRL(HindsightConfig(**union, revisions_per_experience=2)).most_revisions(8) == 16
    assert HeRL(HindsightConfig(replace="append", replace_top_n=3)).rows_added == 3
    assert HeRL(HindsightConfig()).rows_added == 0


def test_every_key_is_read_by_someone_who_says_so() -> None:
    """A new key that no method names would be warned about under each of them."""
    keys = set(HindsightConfig.model_fields)
    assert SHARED_KEYS | HeRL.keys | HiR.keys == keys
    assert not SHARED_KEYS & (HeRL.keys | HiR.keys)


def test_a_key_that_the_method_does_not_read_is_said(caplog: pytest.LogCaptureFixture) -> None:
    both = HindsightConfig(
        method="replay", alpha=0.5, replays_per_group=3, gamma=1.0, select="random"
    )
    assert ignored_keys(both) == {"alpha": 0.5, "select": "random"}
    revises = both.model_copy(update={"method": "revise"})
    assert ignored_keys(revises) == {"replays_per_group": 3}
    # A run's own file gives every key: one with the default's value is no slip.
    assert ignored_keys(HindsightConfig(method="replay", alpha=0.05)) == {}
    with caplog.at_level(logging.WARNING):
        _check_method(revises, [PROMPT])
    assert caplog.messages == [
        "hindsight.replays_per_group is 3, which hindsight.method 'revise' does not read: it"
        " changes nothing"
    ]


def test_what_a_step_costs_under_each() -> None:
    methods = [
        open_method(HindsightConfig.model_validate(values))
        for values in (
            {},
            {"replace": "append", "replace_top_n": 3},
            {"method": "replay", "replays_per_group": 5},
        )
    ]
    assert [m.samples for m in methods if m] == [True, True, False]
    assert [m.rows_added for m in methods if m] == [0, 3, 5]
    assert [m.revisions_per_rollout for m in methods if m] == [1, 1, 1]
    assert HeRL(HindsightConfig(revisions_per_experience=4)).revisions_per_rollout == 4


def test_a_method_from_outside_has_its_options(own: Path) -> None:
    (own / "own_method.py").write_text(
        "from herl_megatron.hindsight.method import HindsightMethod\n"
        "class Mine(HindsightMethod):\n"
        "    def __init__(self, config, *, count: int = 2):\n"
        "        super().__init__(config)\n"
        "        self.count = count\n"
        "    def propose(self, group, context): ...\n"
        "class Other:\n"
        "    def __init__(self, config):\n"
        "        pass\n"
    )

    def counted(**values: OptionValue) -> int:
        method = open_method(HindsightConfig(method="own_method:Mine", method_options=values))
        return int(vars(method)["count"])

    assert (counted(), counted(count=7)) == (2, 7)
    for values, said in (
        ({"method_options": {"cuont": 1}}, "method_options has no use for 'cuont'"),
        ({"method_options": {"count": "x"}}, "method_options.count is 'x'"),
        ({"method": "own_method:Other"}, "own_method:Other is no class that derives from"),
        ({"method": "own_method:Mime"}, "has no 'Mime'; did you mean 'Mine'?"),
        ({"method": "own_nothing:Mine"}, "cannot import 'own_nothing'"),
    ):
        config = HindsightConfig.model_validate({"method": "own_method:Mine"} | values)
        with pytest.raises(ValueError, match="hindsight.method") as caught:
            open_method(config)
        assert said in str(caught.value)


def experience(rollout: int) -> HindsightExperience:
    return HindsightExperience(rollout, "", IDS, (), ())


@pytest.mark.parametrize(
    ("proposal", "said"),
    [
        (Proposal((experience(3),)), "names rollout 3, of 3"),
        (Proposal((experience(1),)), "rollout 1 has no score"),
        (
            Proposal((experience(0), experience(0))),
            "2 revisions of rollout 0, but its revisions_per",
        ),
        (Proposal(replays=(Replay(-1, "", IDS, ()),)), "names rollout -1, of 3"),
        (Proposal(replays=(Replay(0, "", IDS, (), float("nan")),)), "a replay's reward is nan"),
        (None, "gave a NoneType; return a Proposal"),
    ],
)
def test_what_cannot_be_drawn_is_refused(proposal: Proposal, said: str) -> None:
    group, method = make_group([0.5, None, 0.0]), HindsightMethod(HindsightConfig())
    with pytest.raises(ValueError, match="HindsightMethod.propose, prompt 'p0'") as caught:
        check_proposal(proposal, group, method)
    assert said in str(caught.value)
    # An unscored response may be replayed, and each scored one revised once.
    good = Proposal((experience(0), experience(2)), (Replay(1, "", IDS, ()),))
    check_proposal(good, group, method)


@pytest.mark.parametrize(
    ("join", "said"),
    [
        (Join((0.0,), ()), "1 bonuses, 2 rollouts"),
        (Join((0.0, float("inf")), ()), "are not all finite"),
        (Join((0.0, 0.0), (RowOrigin(2),)), "names rollout 2, of 2"),
        (Join((0.0, 0.0), (RowOrigin(0, revision_index=1),)), "names revision 1, of 1"),
        (Join((0.0, 0.0), (RowOrigin(0, replay_index=0),)), "names replay 0, of 0"),
    ],
)
def test_rows_without_a_source_are_refused(join: Join, said: str) -> None:
    group, method = make_group([0.5, 0.0], [(0, 1.0)]), HindsightMethod(HindsightConfig())
    with pytest.raises(ValueError, match="HindsightMethod.join_step, prompt 'p0'") as caught:
        check_joins([join], [group], method)
    assert said in str(caught.value)
    with pytest.raises(ValueError, match="gave 0 joins for 1 groups"):
        check_joins([], [group], method)
    check_joins([plain_join(group)], [group], method)


def test_without_a_join_of_its_own_a_method_joins_as_herl_does_and_adds_its_replays() -> None:
    """Row 3 gives way to the revision of row 1, which earns 0.05 * (1 - 0.5); a replay of row 0 is
    worth what it says. Mean of 0.25, 0.525, 0.5, 1.0, 0.75 is 0.605, sample std 0.283064."""
    group = make_group([0.25, 0.5, 0.5, 0.0], [(1, 1.0)])
    group = replace(group, replays=(Replay(0, "again", IDS, (), reward=0.75),))
    join = HindsightMethod(HindsightConfig()).join(group, 0)
    assert join.bonuses == pytest.approx((0.0, 0.025, 0.0, 0.0))
    assert join.origins == (
        RowOrigin(0), RowOrigin(1), RowOrigin(2),
        RowOrigin(1, revision_index=0, replaces=3), RowOrigin(0, replay_index=0),
    )  # fmt: skip
    # HeRL proposes no replay, so its rows are made by the same rule.
    rows = build_rows(group, HindsightConfig(), AlgorithmConfig(), 0).rows
    assert [row.reward for row in rows] == pytest.approx([0.25, 0.525, 0.5, 1.0, 0.75])
    assert rows[4].advantage == pytest.approx((0.75 - 0.605) / (0.283064 + 1e-4), abs=1e-5)


def test_hir_leaves_revisions_and_their_keys_alone() -> None:
    group = replace(make_group([0.0, 0.5], [(0, 1.0)]), replays=(Replay(0, "less", IDS, ()),))
    config = HindsightConfig(method="replay", alpha=1.0, no_qualified="copy_best")
    built = build_rows(group, config, AlgorithmConfig(), 0)
    assert built.origins == (RowOrigin(0), RowOrigin(1), RowOrigin(0, replay_index=0))
    assert [row.reward for row in built.rows] == [0.0, 0.5, 1.0]


def test_without_hindsight_a_group_is_as_it_was_sampled() -> None:
    group = replace(make_group([0.0, 0.5], [(0, 1.0)]), replays=(Replay(0, "less", IDS, ()),))
    built = build_rows(group, HindsightConfig(enabled=False), AlgorithmConfig(), 0)
    assert built.origins == (RowOrigin(0), RowOrigin(1))
    assert built.stats.replays == 0 and built.stats.bonus_sum == 0


def test_rows_are_refused_by_the_method_that_can_do_nothing_with_them() -> None:
    silent = replace(PROMPT, messages=())
    with pytest.raises(ValueError, match="end the prompt with a user message"):
        _check_method(HindsightConfig(), [PROMPT, silent])
    with pytest.raises(ValueError, match="none of the 1 prompts states a criterion"):
        _check_method(HindsightConfig(method="replay"), [PROMPT])
    prompts: list[Prompt] = []
    _check_method(HindsightConfig(enabled=False), prompts)


def test_problems_are_the_methods_own() -> None:
    greedy = RolloutConfig(temperature=0.0, group_size=4)
    assert list(HeRL(HindsightConfig()).problems(greedy)) == []
    (said,) = HiR(HindsightConfig(method="replay", replace_top_n=9)).problems(greedy)
    assert "'replay' with rollout.temperature 0" in said
    (said,) = HeRL(HindsightConfig(replace_top_n=9)).problems(RolloutConfig(group_size=4))
    assert "replace_top_n is 9, above rollout.group_size 4" in said


def test_a_step_is_joined_in_the_order_of_its_groups() -> None:
    """`replace: random` draws each group's slot by that group's own seed."""
    config = HindsightConfig(replace="random")
    groups = [
        make_group([0.0] * 8, [(0, 1.0)], prompt=replace(PROMPT, id=f"p{i}")) for i in range(4)
    ]
    step = build_train_batch(
        groups, config, AlgorithmConfig(), prompts_per_optimizer_step=2, run_seed=3, step=5
    )
    alone = [
        build_train_batch(
            [group], config, AlgorithmConfig(), prompts_per_optimizer_step=2, run_seed=3, step=5
        ).groups[0]
        for group in groups
    ]
    assert [g.origins for g in step.groups] == [g.origins for g in alone]
    slots = [next(o.replaces for o in g.origins if o.off_policy) for g in step.groups]
    assert len(set(slots)) > 1
