"""Self-improvement's stream and its files, with an engine and a scorer worked out by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herl_megatron.config.load import save_resolved
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.schema import (
    Config,
    DataConfig,
    EvalConfig,
    HindsightConfig,
    ImproveConfig,
    JudgeConfig,
    ModelConfig,
    RolloutConfig,
    ScoringConfig,
)
from herl_megatron.files.run_files import SAMPLES, TRAJECTORIES, write_run_file
from herl_megatron.improvement.sampling import Improver
from herl_megatron.improvement.trajectory import Attempt, Trajectory
from herl_megatron.improvement.trajectory_log import TrajectoryLog, check_continues
from herl_megatron.rollout.pipeline import PipelineError, RolloutPipeline
from herl_megatron.seeds import request_seed
from herl_megatron.types import (
    Completion,
    GenerateRequest,
    Message,
    Prompt,
    SamplingSettings,
    Score,
    Scored,
    Unscored,
)
from tests.unit.rollout.fakes import CRITERIA, CharTokenizer, FakeEngine, FakeScorer, make_prompts


def make_config(**sections: Any) -> Config:
    return Config(
        **{
            "model": ModelConfig(path="none"),
            "data": DataConfig(max_experience_tokens=10_000),
            "rollout": RolloutConfig(max_response_tokens=8, timeout_s=5),
            "eval": EvalConfig(samples_per_prompt=2, temperature=0.9, top_p=0.95, seed=7),
            "improve": ImproveConfig(rounds=3, temperature=0.4),
        }
        | sections
    )


class Writer(FakeEngine):
    """Writes the next text of a script for each request, in order of arrival."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self._texts = list(texts)

    def complete(self, request: GenerateRequest) -> Completion:
        ids = CharTokenizer().plain_ids(self._texts.pop(0))
        return Completion(request.request_id, ids, np.zeros(len(ids), np.float32), "stop", 0)


class LetterScorer:
    """Criterion i is met where the text has the letter `abcd`[i]; "?" cannot be scored and "!"
    ends the judge."""

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """Nobody judges early here."""

    def paused_s(self) -> float:
        return 0.0

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> Score:
        if "!" in text:
            raise RuntimeError("the judge is away")
        if "?" in text:
            return Unscored("no answer")
        met = tuple(c.id for c, letter in zip(CRITERIA, "abcd", strict=True) if letter in text)
        unmet = tuple(c.id for c in CRITERIA if c.id not in met)
        return Scored(len(met) / 4, (), met, unmet)


class Kept:
    """What an improver hands over."""

    def __init__(self) -> None:
        self.trajectories: list[Trajectory] = []
        self.samples: list[tuple[tuple[str, int], Attempt]] = []


def make_improver(
    engines: Sequence[FakeEngine],
    scorer: FakeScorer | LetterScorer,
    config: Config,
    kept: Kept | None = None,
) -> Improver:
    kept = kept or Kept()
    return Improver(
        engines,
        scorer,
        CharTokenizer(),
        config,
        on_trajectory=kept.trajectories.append,
        on_sample=lambda key, sample: kept.samples.append((key, sample)),
    )


ONE = EvalConfig(samples_per_prompt=1, seed=7)


def test_each_round_revises_the_best_so_far_against_what_it_misses() -> None:
    """a -> x (worse) -> ab (better) -> abcd would be a fourth round; three are allowed."""
    engine = Writer("a", "x", "ab")
    config = make_config(eval=ONE, improve=ImproveConfig(rounds=2, temperature=0.4))
    improver = make_improver([engine], LetterScorer(), config)
    (trajectory,) = asyncio.run(improver.improve(make_prompts(1), {}))
    assert [a.text for a in trajectory.attempts] == ["a", "x", "ab"]
    assert [a.parent for a in trajectory.attempts] == [None, 0, 0]
    assert [a.tokens for a in trajectory.attempts] == [1, 1, 2]
    asked = [CharTokenizer().decode(r.prompt_token_ids) for r in engine.requests]
    assert asked[0] == "user>Question 0.|assistant>"
    wanted = (
        "user>Question 0.\n\nDraft:\na\n\nRequirements met, to keep:\n- Rule 0.\n\n"
        "Requirements missed, to fix:\n- Rule 1.\n- Rule 2.\n- Rule 3.\n\n"
        "Write only the revised answer.|assistant>"
    )
    assert asked[1:] == [wanted, wanted]
    assert [a.prompt_tokens for a in trajectory.attempts] == [len(text) for text in asked]
    assert len({r.seed for r in engine.requests}) == 3  # the same prompt, another revision
    assert [r.sampling for r in engine.requests] == [
        SamplingSettings(1.0, 1.0, max_tokens=8),
        SamplingSettings(0.4, 1.0, max_tokens=8),
        SamplingSettings(0.4, 1.0, max_tokens=8),
    ]


def test_a_revision_is_asked_for_the_answer_without_its_thinking() -> None:
    engine = Writer("hm|a", "so|ab")
    thinking = ScoringConfig(answer_after="|")
    config = make_config(eval=ONE, improve=ImproveConfig(rounds=1), scoring=thinking)
    (trajectory,) = asyncio.run(
        make_improver([engine], LetterScorer(), config).improve(make_prompts(1), {})
    )
    assert [a.text for a in trajectory.attempts] == ["hm|a", "so|ab"]
    asked = CharTokenizer().decode(engine.requests[1].prompt_token_ids)
    assert "Draft:\na\n" in asked and "hm" not in asked


def test_a_trajectory_ends_when_nothing_is_missed() -> None:
    improver = make_improver([Writer("a", "abcd")], LetterScorer(), make_config(eval=ONE))
    (trajectory,) = asyncio.run(improver.improve(make_prompts(1), {}))
    assert [a.text for a in trajectory.attempts] == ["a", "abcd"]


def test_what_cannot_be_revised_is_drawn_anew() -> None:
    """A draft without verdicts, and one whose revision prompt is too long, are never revised."""
    engine = Writer("?", "ab", "abc")
    config = make_config(eval=ONE, improve=ImproveConfig(rounds=2))
    (trajectory,) = asyncio.run(
        make_improver([engine], LetterScorer(), config).improve(make_prompts(1), {})
    )
    assert [a.parent for a in trajectory.attempts] == [None, None, 1]
    plain = CharTokenizer().prompt_ids((Message("user", "Question 0."),))
    assert [len(r.prompt_token_ids) == len(plain) for r in engine.requests] == [True, True, False]

    short = config.model_copy(update={"data": DataConfig(max_experience_tokens=60)})
    engine = Writer("a", "b", "ab")
    (trajectory,) = asyncio.run(
        make_improver([engine], LetterScorer(), short).improve(make_prompts(1), {})
    )
    assert [a.parent for a in trajectory.attempts] == [None, None, None]


def test_round_0_is_the_evaluation_and_arrival_order_changes_nothing() -> None:
    prompts, config = make_prompts(5), make_config()
    evaluation = RolloutPipeline(
        [FakeEngine()], FakeScorer(), CharTokenizer(), config.rollout, None,
        seed=7, group_size=2,
        sampling=SamplingSettings(0.9, 0.95, max_tokens=8),
    )  # fmt: skip
    groups = asyncio.run(evaluation.run(prompts, step=0))
    texts = [rollout.text for group in groups for rollout in group.group.rollouts]

    runs = []
    for delay in (None, 3):
        engines = [FakeEngine(delay), FakeEngine(delay)]
        improver = make_improver(engines, FakeScorer(delay), config)
        trajectories = asyncio.run(improver.improve(prompts, {}))
        samples = asyncio.run(improver.sample_baseline(prompts, trajectories, {}))
        runs.append((trajectories, samples))
    assert [t.attempts[0].text for t in runs[0][0]] == texts
    assert [(t.prompt_id, t.index) for t in runs[0][0]] == [
        (p.id, i) for p in prompts for i in (0, 1)
    ]
    assert runs[0] == runs[1]


def test_the_baseline_draws_as_many_samples_and_then_as_many_tokens() -> None:
    """Draft 1 token, two revisions of 4: 9 tokens. Samples of 1 token: 3 are as many samples, 9
    as many tokens; a sample that meets everything ends it earlier."""
    config = make_config(eval=ONE, improve=ImproveConfig(rounds=2))
    prompts = make_prompts(1)

    def run(*texts: str) -> list[str]:
        engine = Writer("a", "bxxx", "cxxx", *texts)
        improver = make_improver([engine], LetterScorer(), config)
        trajectories = asyncio.run(improver.improve(prompts, {}))
        (samples,) = asyncio.run(improver.sample_baseline(prompts, trajectories, {}))
        seeds = {r.seed for r in engine.requests}
        assert len(seeds) == len(engine.requests)
        return [sample.text for sample in samples]

    assert run(*"bbbbbbbb") == list("abbbbbbbb")
    assert run("b", "b" * 8) == ["a", "b", "b" * 8]
    assert run("abcd") == ["a", "abcd"]


def test_the_baseline_gives_up_at_four_times_as_many_samples() -> None:
    config = make_config(eval=ONE, improve=ImproveConfig(rounds=1))
    improver = make_improver([Writer("a", "b" * 99, *"b" * 7)], LetterScorer(), config)
    trajectories = asyncio.run(improver.improve(make_prompts(1), {}))
    (samples,) = asyncio.run(improver.sample_baseline(make_prompts(1), trajectories, {}))
    assert len(samples) == 8


def test_samples_have_the_seeds_of_later_samples_of_an_evaluation() -> None:
    engine = Writer("a", "b", "c", "d")
    config = make_config(
        eval=EvalConfig(samples_per_prompt=2, seed=7), improve=ImproveConfig(rounds=1)
    )
    prompts = make_prompts(1)
    draft = [Attempt(0, None, "a", 0, 1, "stop", LetterScorer()._score("a"))]
    trajectories = [Trajectory("q0", index, tuple(draft)) for index in (0, 1)]
    asyncio.run(
        make_improver([engine], LetterScorer(), config).sample_baseline(prompts, trajectories, {})
    )
    seeds = [request_seed(7, step=0, prompt_id="q0", kind="rollout", index=i) for i in (2, 3)]
    assert [r.seed for r in engine.requests] == seeds


def test_what_was_complete_survives_a_judge_that_dies_and_is_not_drawn_again(
    tmp_path: Path,
) -> None:
    prompts = tuple(make_prompts(2))
    config = make_config(eval=ONE, improve=ImproveConfig(rounds=1))

    def start(engine: Writer) -> tuple[list[Trajectory], list[list[Attempt]]]:
        with TrajectoryLog(tmp_path, prompts) as log:
            improver = Improver(
                [engine],
                LetterScorer(),
                CharTokenizer(),
                config,
                on_trajectory=log.add_trajectory,
                on_sample=log.add_sample,
            )

            async def both() -> tuple[list[Trajectory], list[list[Attempt]]]:
                trajectories = await improver.improve(prompts, dict(log.trajectories))
                known = {key: list(drawn) for key, drawn in log.samples.items()}
                return trajectories, await improver.sample_baseline(prompts, trajectories, known)

            return asyncio.run(both())

    with pytest.raises(PipelineError, match="the judge is away"):
        start(Writer("abcd", "a", "!"))
    (line,) = (tmp_path / TRAJECTORIES).read_text().splitlines()
    assert json.loads(line)["prompt_id"] == "q0"
    with (tmp_path / TRAJECTORIES).open("a") as file:
        file.write('{"prompt_id": "q1", "att')  # killed while writing
    with pytest.raises(PipelineError, match="the judge is away"):
        start(Writer("a", "ab", "!"))  # only q1's draft and revision; its first sample kills
    engine = Writer("c", "bb")
    trajectories, samples = start(engine)
    assert [[a.text for a in t.attempts] for t in trajectories] == [["abcd"], ["a", "ab"]]
    assert [[a.text for a in drawn] for drawn in samples] == [["abcd"], ["a", "c", "bb"]]
    assert len(engine.requests) == 2
    records = [json.loads(line) for line in (tmp_path / TRAJECTORIES).read_text().splitlines()]
    assert [r["best"] for r in records] == [0, 1]
    assert [a["accepted"] for a in records[1]["attempts"]] == [False, True]
    assert len((tmp_path / SAMPLES).read_text().splitlines()) == 2
    again = start(Writer())  # everything is known
    assert again == (trajectories, samples)


def test_what_has_no_score_is_drawn_again_and_stands_in_the_files_once(tmp_path: Path) -> None:
    """Of best-of-N from the first one without a score on: those after it may not have been drawn,
    had it been scored."""
    prompts, scorer = tuple(make_prompts(2)), LetterScorer()

    def attempt(number: int, text: str) -> Attempt:
        return Attempt(number, None, text, 1, 1, "stop", scorer._score(text))

    with TrajectoryLog(tmp_path, prompts) as log:
        log.add_trajectory(Trajectory("q0", 0, (attempt(0, "?"), attempt(1, "a"))))
        log.add_trajectory(Trajectory("q1", 0, (attempt(0, "a"),)))
        for name, texts in (("q0", "ab"), ("q1", "c?d")):
            for number, text in enumerate(texts, start=1):
                log.add_sample((name, 0), attempt(number, text))
    with TrajectoryLog(tmp_path, prompts) as log:
        assert list(log.trajectories) == [("q1", 0)]
        samples = {name: [s.text for s in drawn] for (name, _), drawn in log.samples.items()}
        assert samples == {"q0": ["a", "b"], "q1": ["c"]}
        log.add_trajectory(Trajectory("q0", 0, (attempt(0, "b"), attempt(1, "a"))))
    lines = [json.loads(line) for line in (tmp_path / TRAJECTORIES).read_text().splitlines()]
    assert [line["prompt_id"] for line in lines] == ["q1", "q0"]
    assert len((tmp_path / SAMPLES).read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [SAMPLES, TRAJECTORIES]


def test_a_file_of_other_prompts_is_refused(tmp_path: Path) -> None:
    prompts = tuple(make_prompts(1))
    with TrajectoryLog(tmp_path, prompts) as log:
        log.add_trajectory(
            Trajectory("q0", 0, (Attempt(0, None, "a", 1, 1, "stop", LetterScorer()._score("a")),))
        )
    rubric = prompts[0].rubric
    heavier = replace(rubric, criteria=(replace(rubric.criteria[0], weight=2), *CRITERIA[1:]))
    for other in (
        (Prompt("q0", (Message("user", "Another question."),), rubric),),
        (replace(prompts[0], rubric=heavier),),
        (replace(prompts[0], rubric=replace(rubric, aggregation="all_or_nothing")),),
        (),
    ):
        with pytest.raises(ValueError, match="'q0' is not in data.eval as it was"):
            TrajectoryLog(tmp_path, other)
    assert TrajectoryLog(tmp_path, prompts).trajectories["q0", 0].attempts[0].text == "a"


@pytest.mark.parametrize("bad", [b"garbage", b"[1]", b"{}", b'{"prompt_id": "q0"}', b"\xff\xfe"])
def test_a_line_that_cannot_be_read_is_named_and_neither_file_changes(
    tmp_path: Path, bad: bytes
) -> None:
    prompts, scorer = tuple(make_prompts(1)), LetterScorer()

    def attempt(text: str) -> Attempt:
        return Attempt(0, None, text, 1, 1, "stop", scorer._score(text))

    with TrajectoryLog(tmp_path, prompts) as log:
        log.add_trajectory(Trajectory("q0", 0, (attempt("?"),)))  # to be drawn again
        log.add_sample(("q0", 0), attempt("a"))
    with (tmp_path / SAMPLES).open("ab") as file:
        file.write(bad + b"\n" + b'{"torn')
    before = [(tmp_path / name).read_bytes() for name in (TRAJECTORIES, SAMPLES)]
    with pytest.raises(ValueError, match=f"{SAMPLES}:2: not a line of `herl improve`"):
        TrajectoryLog(tmp_path, prompts)
    assert [(tmp_path / name).read_bytes() for name in (TRAJECTORIES, SAMPLES)] == before


def test_it_goes_on_with_the_same_answers_and_verdicts_only(tmp_path: Path) -> None:
    """What decides speed or the way to the judge may change, who judges and how may not."""
    config = make_config(judge=JudgeConfig(model="one", base_url="http://a/v1"))
    prints = {"data.eval": "2 rows 1234", "judge.prompt": "abcd"}
    check_continues(tmp_path, config, prints)  # nothing there
    save_resolved(config, tmp_path / "config.yaml")
    write_run_file(tmp_path, {"command": "improve", "fingerprints": prints})
    check_continues(tmp_path, make_config(judge=JudgeConfig(model="two")), prints)  # no line yet
    (tmp_path / TRAJECTORIES).write_text("{}\n")
    judge, rollout = config.judge, config.rollout
    moved = judge.model_copy(update={"base_url": "http://b/v1", "concurrency": 2})
    faster = rollout.model_copy(update={"replicas": 3})
    other = config.model_copy(update={"judge": moved, "rollout": faster})
    check_continues(tmp_path, other, prints)
    for section, change, said in (
        (judge, {"model": "two"}, "judge.model is 'two', it was 'one'"),
        (judge, {"samples": 3}, "judge.samples is 3, it was 1"),
        (rollout, {"max_response_tokens": 9}, "rollout.max_response_tokens is 9, it was 8"),
    ):
        name = "judge" if section is judge else "rollout"
        with pytest.raises(ValueError, match=said):
            changed = config.model_copy(update={name: section.model_copy(update=change)})
            check_continues(tmp_path, changed, prints)
    with pytest.raises(ValueError, match=r"judge.prompt is not what it was \(ef now, abcd then"):
        check_continues(tmp_path, config, prints | {"judge.prompt": "ef"})
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config\.yaml is gone"):
        check_continues(tmp_path, config, prints)


@pytest.mark.parametrize("without_template", [{"chat_template": False}, {"reference_compat": True}])
def test_hindsight_prompt_options_are_followed(without_template: dict[str, bool]) -> None:
    engine = Writer("a", "ab")
    config = effective_config(
        make_config(
            eval=ONE,
            improve=ImproveConfig(rounds=1),
            hindsight=HindsightConfig.model_validate({"prompt_style": "naive", **without_template}),
        ),
        purpose="improve",
    )
    asyncio.run(make_improver([engine], LetterScorer(), config).improve(make_prompts(1), {}))
    text = CharTokenizer().decode(engine.requests[1].prompt_token_ids)
    assert text == ("Question 0.\n\nDraft:\na\n\nImprove the draft. Write only the revised answer.")
