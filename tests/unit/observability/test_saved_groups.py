"""Groups on disk: what is read is what was written, and what is no whole file says so."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herl_megatron.array_text import ArrayText
from herl_megatron.observability.saved_groups import read_groups, saved_steps, write_groups
from herl_megatron.types import (
    Completion,
    Criterion,
    CriterionResult,
    HindsightExperience,
    Message,
    Prompt,
    Replay,
    Revision,
    Rollout,
    RolloutGroup,
    Rubric,
    Scored,
    ScoredGroup,
    Segment,
    Turn,
    Unscored,
    Verdict,
)


def completion(text: str, *, log_prob: float = -0.1) -> Completion:
    tokens = np.array([ord(c) for c in text], np.int32)
    drawn = np.full(len(tokens), log_prob, np.float32)
    earlier = (Segment(3, 1),) if text else ()
    return Completion(f"r-{text}", tokens, drawn, "stop" if text else "abort", 4, earlier)


def group() -> ScoredGroup:
    """All that a group can hold: odd texts, no tokens, infinities, a score of each kind."""
    criterion = Criterion("c", "rule", "ifeval/x", {"n": 3, "words": ["a", None]}, weight=-2.5,
                          polarity="negative")  # fmt: skip
    prompt = Prompt("p\u2028", (Message("user", "hi\x0c"),), Rubric((criterion,)), extra={"k": [1]})
    results = (CriterionResult("c", Verdict.NOT_FOLLOWED, "why", grade=0.5),)
    scores = (Scored(0.25, results, (), ("c",)), Unscored("judge is away", results))
    talk = dataclasses.replace(completion("a?b"), drawn=np.array([True, False, True]))
    talk = dataclasses.replace(talk, log_probs=np.array([-0.1, -np.inf], np.float32))
    turns = (Turn(True, "a", 1), Turn(False, "?", 1), Turn(True, "b", 1))
    rollouts = (Rollout(0, talk, "b", turns), Rollout(1, completion(""), ""))
    experience = HindsightExperience(0, "E", np.array([7, 8], np.int32), (), ("c",))
    wild = Rollout(0, completion("z", log_prob=-np.inf), "z")
    return ScoredGroup(
        RolloutGroup(prompt, np.array([1, 2**31 - 1], np.int32), rollouts),
        scores,
        revisions=(Revision(experience, wild, Scored(1.0, (), ("c",), ())),),
        experiences_too_long=2,
        replays=(Replay(1, "less", np.array([5], np.int32), ("c",), reward=0.25),),
        replays_impossible=1,
    )


def same(one: Any, other: Any) -> bool:
    """Equal in type and every bit, field by field."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype) and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "rollouts" / "step_000003.groups.gz"
    write_groups(path, [group(), group()], {"tokenizer of model.path": "abc"})
    groups, fingerprints = read_groups(path)
    assert fingerprints == {"tokenizer of model.path": "abc"}
    assert len(groups) == 2 and all(same(one, group()) for one in groups)
    groups[0].group.rollouts[0].completion.token_ids[0] = 1  # arrays of their own, to write in
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage", ["cut", "other", "line", "format", "empty", "fewer", "no count", "no names"]
)
def test_a_damaged_file_is_an_error_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "step_000000.groups.gz"
    write_groups(path, [group()], {})
    whole = path.read_bytes()
    head, line = gzip.decompress(whole).splitlines()
    content = {
        "cut": whole[: len(whole) // 2],
        "other": b"no gzip",
        "line": gzip.compress(head + b"\n{}\n"),
        "format": gzip.compress(head.replace(b'"format": 1', b'"format": 2') + b"\n" + line),
        "empty": gzip.compress(b""),
        "fewer": gzip.compress(head + b"\n"),
        "no count": gzip.compress(b'{"format": 1, "fingerprints": {}}\n' + line),
        "no names": gzip.compress(b'{"format": 1, "groups": 1, "fingerprints": []}\n' + line),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="step_000000.groups.gz"):
        read_groups(path)


def test_steps_that_follow_each_other(tmp_path: Path) -> None:
    for number in (4, 5, 7):
        write_groups(tmp_path / "rollouts" / f"step_{number:06d}.groups.gz", [], {})
    assert [number for number, _ in saved_steps(tmp_path, 2)] == [4, 5]
    last = tmp_path / "rollouts" / "step_000007.groups.gz"
    assert saved_steps(last, 1) == [(7, last)]
    with pytest.raises(ValueError, match=r"steps 4 to 6 .*step_000006.* lower train.steps to 2"):
        saved_steps(tmp_path, 3)
    with pytest.raises(ValueError, match="holds no rollouts.*train.keep_groups=true"):
        saved_steps(tmp_path / "rollouts", 1)
    with pytest.raises(ValueError, match="neither a run's folder nor a file"):
        saved_steps(tmp_path / "nothing", 1)


def test_an_array_is_text_and_nothing_else(tmp_path: Path) -> None:
    """1 and -2 as little-endian int32: 01000000 feffffff, base64 by hand."""
    text = ArrayText("<i4")
    assert text.encode(np.array([1, -2])) == "AQAAAP7///8="
    assert text.decode("AQAAAP7///8=").tolist() == [1, -2]
    for bad in ("AQAAAP7/", "%%%", 3, None):
        with pytest.raises(ValueError):
            text.decode(bad)
