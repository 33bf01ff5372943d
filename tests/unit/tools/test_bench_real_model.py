"""Standard errors, pairing and the run's JSON: worked out by hand on made-up runs."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tools.bench import real_model
from tools.bench.real_model import BEGIN, END, change, clustered, read_run, table, write_table


def test_standard_error_takes_prompts_as_the_draws() -> None:
    """Means .25 and .75 of two prompts: residual sums -.5 and .5, sqrt(2 / 1 * .5) / 4 = .25; as
    four independent samples (0, .5, .5, 1) it would have been sqrt(1/6) / 2 = .204."""
    assert clustered({"a": [0.0, 0.5], "b": [0.5, 1.0]}) == pytest.approx((0.5, 0.25))


def test_unequal_prompts_weigh_by_their_samples() -> None:
    """Samples 1, 1, 0: mean 2/3; residual sums 2/3 and -2/3; sqrt(2 * 8/9) / 3 = 4/9."""
    assert clustered({"a": [1.0, 1.0], "b": [0.0]}) == pytest.approx((2 / 3, 4 / 9))


def test_one_sample_a_prompt_is_the_textbook_error() -> None:
    """0, 0, 1: sample standard deviation sqrt(1/3), over sqrt(3) is 1/3."""
    assert clustered({"a": [0.0], "b": [0.0], "c": [1.0]})[1] == pytest.approx(1 / 3)


def test_one_prompt_has_no_error_and_no_sample_is_refused() -> None:
    assert clustered({"a": [0.5, 1.0]}) == (0.75, None)
    with pytest.raises(ValueError, match="no scored held-out sample"):
        clustered({})


def test_a_change_is_paired_by_prompt() -> None:
    """Prompts differ widely and both rise by .1: the error is 0, where unpaired it is not."""
    before, after = {"a": [0.0], "b": [0.8]}, {"b": [0.9], "a": [0.1, 0.1]}
    assert change(before, after) == pytest.approx((0.1, 0.0))
    with pytest.raises(ValueError, match="different prompts"):
        change(before, {"a": [0.1]})


def test_a_response_may_hold_whatever_splits_lines_elsewhere(tmp_path: Path) -> None:
    """A trained policy did end with U+2028, which JSON leaves as it is."""
    group = {"prompt_id": "p", "rollouts": [{"text": "a\u2028b\x0c\x85\x1cc", "reward": 1.0,
                                             "satisfied": ["c"], "unmet": []}]}  # fmt: skip
    path = tmp_path / "rollouts" / "eval_000000.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(group, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert real_model.read_samples(tmp_path, 0)["reward"] == {"p": [1.0]}


def write_run(folder: Path) -> Path:
    """Two steps, evaluated before and after on two prompts with two samples each."""
    (folder / "rollouts").mkdir(parents=True)
    measured: dict[int, list[list[float | None]]] = {
        0: [[0.0, 0.5], [0.5, 0.0]], 2: [[0.5, 0.5], [1.0, None]]
    }  # fmt: skip
    for step, rewards in measured.items():
        lines = [
            json.dumps({
                "prompt_id": f"p{number}",
                "rollouts": [
                    {"reward": r, "satisfied": ["c1"], "unmet": [] if r == 1 else ["c2"]}
                    for r in drawn
                ],
            })
            for number, drawn in enumerate(rewards)
        ]  # fmt: skip
        (folder / f"rollouts/eval_{step:06d}.jsonl").write_text("\n".join(lines))
    drafts = [{"satisfied": []}, {"satisfied": ["c1"]}]
    revisions = [{"parent": 0, "satisfied": ["c1", "c2"]}, {"parent": 1, "satisfied": ["c2"]}]
    criteria = [{"id": "c1", "check": "ifeval/a:b"}, {"id": "c2", "check": "ifeval/a:c"}]
    group = {"criteria": criteria, "rollouts": drafts, "revisions": revisions}
    (folder / "rollouts/step_000000.jsonl").write_text(json.dumps(group))
    time = {"time/total_s": 30.0, "time/rollout_s": 10.0, "time/train_s": 18.0}
    metrics: list[dict[str, float]] = [
        {"step": 0, "eval/response_tokens": 40.0, "eval/check/ifeval/a:b": 0.5},
        {"step": 0, "rollout/tokens": 100, "rollout/revision_tokens": 20, **time},
        {"step": 1, "rollout/tokens": 90, "rollout/revision_tokens": 10, **time}
        | {"time/total_s": 20.0},
        {"step": 2, "eval/response_tokens": 11.0, "eval/check/ifeval/a:b": 0.75},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    hindsight = {"experiences": 9, "revisions": 8.0, "accepted": 2.0, "gain": 0.25}
    (folder / "summary.json").write_text(
        json.dumps({"steps": 2, "hindsight": hindsight, "seconds": {"total": 77.5}})
    )
    return folder


def test_a_run_in_numbers(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    first, last = run["evaluations"]
    assert (first["step"], first["tokens"], first["samples"], first["reward"]) == (0, 0, 4, 0.25)
    assert first["reward_se"] == 0.0  # both prompts have the mean .25
    assert (last["step"], last["tokens"], last["samples"]) == (2, 220, 3)  # one is unscored
    assert last["reward"] == pytest.approx(2 / 3)
    assert (last["response_tokens"], last["checks"]) == (11.0, {"ifeval/a:b": 0.75})
    assert last["all_satisfied"] == pytest.approx(1 / 3)
    # By prompt .25 -> .5 and .25 -> 1: mean .5, difference .5 of two, error .25.
    assert run["change"]["reward"] == pytest.approx(0.5)
    assert run["change"]["reward_se"] == pytest.approx(0.25)
    assert run["hindsight"]["joined_share"] == 0.25
    assert run["hindsight"]["checks"] == {"ifeval/a:b": [0.5, 0.5], "ifeval/a:c": [0.0, 1.0]}
    assert run["seconds"] == {
        "step_mean": 25.0, "rollout_mean": 10.0, "train_mean": 18.0, "run": 77.5
    }  # fmt: skip
    assert run["generated_tokens"] == 220


def test_what_is_shown_has_errors_and_promises_nothing(tmp_path: Path) -> None:
    shown = real_model.show(write_run(tmp_path / "run"))
    assert "before 0.250 +- 0.000" in shown and "change +0.500 +- 0.250" in shown
    assert "revisions 8, joined 25%, mean gain over the draft +0.250" in shown
    assert "no evidence" in shown


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        read_run(tmp_path)


def made_up(arm: str, seed: int, tokens: list[int], reward: list[float]) -> dict[str, Any]:
    evaluations = [
        {"step": 3 * i, "tokens": t, "samples": 9, "reward": r, "reward_se": 0.02,
         "all_satisfied": r / 2, "all_satisfied_se": 0.01, "response_tokens": 40.0 - 10 * i,
         "checks": {"ifeval/startend:quotation": r}}
        for i, (t, r) in enumerate(zip(tokens, reward, strict=True))
    ]  # fmt: skip
    revisions = 0 if arm == "rlvr" else 10
    return {
        "task": "unstated", "arm": arm, "seed": seed, "steps": evaluations[-1]["step"],
        "evaluations": evaluations, "generated_tokens": tokens[-1],
        "hindsight": {
            "revisions": revisions, "joined": 4, "joined_share": 0.4, "gain": 0.3,
            "checks": {"ifeval/startend:quotation": [0.0, 0.9]} if revisions else {},
        },
        "seconds": {"step_mean": 30.0},
    }  # fmt: skip


def test_arms_are_compared_with_rlvr_of_the_same_seed() -> None:
    runs = [
        made_up("herl", 0, [0, 120, 240], [0.1, 0.4, 0.7]),
        made_up("rlvr", 0, [0, 100, 200], [0.1, 0.2, 0.4]),
        made_up("herl", 1, [0, 100, 220], [0.1, 0.3, 0.5]),
        made_up("rlvr", 1, [0, 100, 200], [0.1, 0.3, 0.4]),
    ]
    # Equal steps +.3 and +.1: +.2, sd .1414 / sqrt 2 = .1. At 200 tokens HeRL is 80 of 120 tokens
    # behind its second evaluation, .6 (seed 0), and 100 of 120, .4667 (seed 1).
    assert (
        "| unstated | herl | 2 | +0.200 +- 0.100 (+0.300 +0.100) |"
        " +0.133 +- 0.067 (+0.200 +0.067) |" in table(runs)
    )
    assert "| unstated | rlvr | 0 | 6 | 0.100 +- 0.020 | 0.400 +- 0.020 |" in table(runs)
    assert "4 of 10 (40%) | +0.300" in table(runs)
    assert (
        "| unstated | herl | 1 | 40 -> 20 | quotation 0.10 -> 0.50 | quotation 0.00 -> 0.90 |"
        in table(runs)
    )


def test_the_pages_table_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    with pytest.raises(ValueError, match="at least one"):
        write_table(tmp_path, page)
    (tmp_path / "a.json").write_text(json.dumps(made_up("rlvr", 0, [0, 100], [0.1, 0.2])))
    write_table(tmp_path, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| task |") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text


def test_the_shipped_page_shows_the_shipped_results(tmp_path: Path) -> None:
    docs = real_model.ROOT / "docs"
    copy = tmp_path / "real_model.md"
    copy.write_text((docs / "real_model.md").read_text())
    write_table(docs / "results", copy)
    assert copy.read_text() == (docs / "real_model.md").read_text()


def test_ifevals_evaluations_are_runs_that_lie_in_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were refused, after the training."""
    folder = write_run(tmp_path / "runs" / "stated-herl-seed0")
    outs: list[Path] = []

    def accuracies_of(model: Path, out: Path, source: Path) -> dict[str, Any]:
        outs.append(out.resolve())
        return {"model": model.name}

    monkeypatch.setattr(real_model, "accuracies_of", accuracies_of)
    monkeypatch.setattr(real_model, "train", lambda options: folder)
    options = Namespace(
        task="stated", arm="herl", seed=0, set=[], model=tmp_path / "model", runs=folder.parent,
        out=tmp_path / "results", ifeval=tmp_path / "input_data.jsonl",
    )  # fmt: skip
    written = json.loads(real_model.measure(options).read_text())
    assert written["ifeval"] == {"before": {"model": "model"}, "after": {"model": "policy"}}
    assert len(set(outs)) == 2 and not any(out.is_relative_to(folder) for out in outs)
