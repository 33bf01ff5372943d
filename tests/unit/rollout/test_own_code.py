"""The examples of docs/extending_methods.md, named in a configuration and run by the pipeline."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from herl_megatron.batching.rows import StepRows, build_train_batch
from herl_megatron.config.load import load_config
from herl_megatron.config.schema import AlgorithmConfig, Config, HindsightConfig, RolloutConfig
from herl_megatron.observability.rollout_log import group_record
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import PipelineError, RolloutPipeline
from herl_megatron.seeds import request_seed
from herl_megatron.types import Completion, GenerateRequest, Scored, ScoredGroup
from tests.pages import blocks
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts

PAGE = "docs/extending_methods.md"
MODULES = ("my_methods", "my_rollouts")


@pytest.fixture(autouse=True)
def pages_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's Python lies in a folder that herl is started in."""
    code = [block.text for block in blocks("python") if block.page == PAGE]
    assert len(code) == 3
    (tmp_path / "my_methods.py").write_text("\n".join(code[:2]))
    (tmp_path / "my_rollouts.py").write_text(code[2])
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in MODULES:
        sys.modules.pop(name, None)


def configuration(name: str, tmp_path: Path) -> Config:
    """That of the page which names `name`."""
    (text,) = (b.text for b in blocks("yaml") if b.page == PAGE and name in b.text)
    assert set(yaml.safe_load(text)) <= {"hindsight", "rollout"}
    file = tmp_path / "page.yaml"
    file.write_text(text)
    return load_config(file)


def run(
    config: Config, engine: FakeEngine, *, prompts: int, group: int, limit: int = 10_000
) -> tuple[list[ScoredGroup], StepRows]:
    rollout = config.rollout.model_copy(update={"group_size": group, "max_response_tokens": 60})
    stage = open_stage(config.hindsight, rollout, max_tokens=limit)
    pipeline = RolloutPipeline([engine], FakeScorer(2), CharTokenizer(), rollout, stage, seed=6)
    groups = asyncio.run(pipeline.run(make_prompts(prompts), step=2))
    rows = build_train_batch(
        groups, config.hindsight, AlgorithmConfig(),
        prompts_per_optimizer_step=prompts, run_seed=6, step=2,
    )  # fmt: skip
    return groups, rows


def test_every_failure_is_revised_once(tmp_path: Path) -> None:
    config = configuration("ReviseFailures", tmp_path)
    engine, scorer = FakeEngine(3), FakeScorer()
    groups, rows = run(config, engine, prompts=4, group=5)
    made = 0
    for group, joined in zip(groups, rows.groups, strict=True):
        scores = [scorer.score(r.text) for r in group.group.rollouts]
        failed = [i for i, s in enumerate(scores) if isinstance(s, Scored) and s.unmet]
        assert [r.experience.rollout_index for r in group.revisions] == failed
        for index, revision in zip(failed, group.revisions, strict=True):
            draft = group.group.rollouts[index].text
            question = group.group.prompt.messages[0].content
            text = f"user>{question}\n\nDraft:\n{draft}\n\nImprove it.|assistant>"
            asked = GenerateRequest(
                revision.rollout.completion.request_id, CharTokenizer().plain_ids(text),
                config.rollout.sampling(),
                seed=request_seed(
                    6, step=2, prompt_id=group.group.prompt.id, kind="revision", index=index
                ),
            )  # fmt: skip
            answer = FakeEngine().complete(asked)
            assert revision.rollout.completion.token_ids.tolist() == answer.token_ids.tolist()
            assert revision.score == scorer.score(revision.rollout.text)
            assert CharTokenizer().decode(revision.experience.prompt_token_ids) == text
            made += 1
        best = max(s.reward for s in scores if isinstance(s, Scored))
        better = [
            i for i, r in enumerate(group.revisions)
            if isinstance(r.score, Scored) and r.score.reward > best
        ]  # fmt: skip
        appended = [o.revision_index for o in joined.origins[5:]]
        assert sorted(i for i in appended if i is not None) == better
    assert made > 10
    # The sampling is the section's own: hindsight.temperature, not rollout.temperature.
    revised = [r for r in engine.requests if "-revision" in r.request_id]
    assert {r.sampling.temperature for r in revised} == {0.3}


def test_what_does_not_fit_is_counted_for_a_method_of_ones_own(tmp_path: Path) -> None:
    config = configuration("ReviseFailures", tmp_path)
    free, _ = run(config, FakeEngine(), prompts=3, group=5)
    none, rows = run(config, FakeEngine(), prompts=3, group=5, limit=20)
    assert [g.revisions for g in none] == [()] * 3
    assert [g.experiences_too_long for g in none] == [len(g.revisions) for g in free]
    assert rows.metrics["hindsight/experiences_too_long"] > 5


class Scripted(FakeEngine):
    """Answers by prompt and rollout."""

    TEXTS = (("a", "g"), ("p", "e"), ("o", "a"))
    """Rewards 0.25 0.75, 0 0.5, 1 0.25: bits 0 to 3 of 97, 103, 112, 101, 111, 97."""

    def complete(self, request: GenerateRequest) -> Completion:
        found = re.fullmatch(r"step2-prompt(\d)-rollout(\d)", request.request_id)
        assert found, f"nothing else is drawn: {request.request_id}"
        answer = super().complete(request)
        text = self.TEXTS[int(found[1])][int(found[2])]
        return Completion(
            request.request_id, CharTokenizer().plain_ids(text), answer.log_probs[:1], "stop", 5
        )


def test_a_method_chooses_over_the_whole_step(tmp_path: Path) -> None:
    """The two best of the step are 1 (q2) and 0.75 (q0); q1's 0.5 is proposed and left out.

    q0: 0.25, 0.75, 0.75 have mean 0.583333 and sample std 0.288675; q1: 0, 0.5 have 0.25 and
    0.353553; q2: 1, 0.25, 1 have 0.75 and 0.433013; eps is 1e-4.
    """
    config = configuration("BestOfStep", tmp_path)
    groups, rows = run(config, Scripted(), prompts=3, group=2)
    assert [group.replays[0].reward for group in groups] == [0.75, 0.5, 1.0]
    assert [[row.reward for row in g.rows] for g in rows.groups] == [
        [0.25, 0.75, 0.75], [0.0, 0.5], [1.0, 0.25, 1.0]
    ]  # fmt: skip
    wanted = [
        [-0.333333 / 0.288775, 0.166667 / 0.288775, 0.166667 / 0.288775],
        [-0.25 / 0.353653, 0.25 / 0.353653],
        [0.25 / 0.433113, -0.5 / 0.433113, 0.25 / 0.433113],
    ]
    for group, advantages in zip(rows.groups, wanted, strict=True):
        assert [row.advantage for row in group.rows] == pytest.approx(advantages, abs=1e-5)
    again = rows.groups[0].rows[2]
    assert again.off_policy and again.response_token_ids.tolist() == [ord("g")]
    assert again.context_token_ids.tolist() == groups[0].group.prompt_token_ids.tolist()
    assert rows.metrics["hindsight/replays"] == 2
    records = [
        group_record(group, joined.rows, joined.origins)
        for group, joined in zip(groups, rows.groups, strict=True)
    ]
    assert [record["replays"][0]["row"] is None for record in records] == [False, True, False]


def test_a_rollout_of_two_turns(tmp_path: Path) -> None:
    config = configuration("two_turns", tmp_path)
    config = config.model_copy(update={"hindsight": HindsightConfig(enabled=False)})
    engine = FakeEngine(4)
    groups, rows = run(config, engine, prompts=2, group=3)
    told = "user>Shorten your answer.|assistant>"
    answers = {r.request_id: FakeEngine().complete(r) for r in engine.requests}
    assert len(answers) == 2 * 3 * 2
    for position, group in enumerate(groups):
        for index, rollout in enumerate(group.group.rollouts):
            first, second = (
                answers[f"step2-prompt{position}-rollout{index}-turn{turn}"] for turn in (0, 1)
            )
            texts = [CharTokenizer().decode(a.token_ids) for a in (first, second)]
            assert [turn.text for turn in rollout.turns] == [texts[0], told, texts[1]]
            assert rollout.text == texts[1]
            drawn = rollout.completion.log_probs.tolist()
            assert drawn == [*first.log_probs.tolist(), *second.log_probs.tolist()]
    used = [row for group in rows.groups for row in group.rows]
    assert all(row.drawn is not None and not row.drawn.all() for row in used)


def test_a_method_that_raises_ends_the_run_by_its_name(tmp_path: Path) -> None:
    Path("my_methods.py").write_text(
        "from herl_megatron.hindsight.method import HindsightMethod\n"
        "class Broken(HindsightMethod):\n"
        "    def propose(self, group, context):\n"
        "        return group.scores[99]\n"
    )
    rollout = RolloutConfig(group_size=2, max_response_tokens=8)
    stage = open_stage(HindsightConfig(method="my_methods:Broken"), rollout, max_tokens=99)
    pipeline = RolloutPipeline(
        [FakeEngine()], FakeScorer(), CharTokenizer(), rollout, stage, seed=6
    )
    with pytest.raises(PipelineError, match="q0', hindsight: hindsight.method my_methods:Broken"):
        asyncio.run(pipeline.run(make_prompts(1), step=0))
