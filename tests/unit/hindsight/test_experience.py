"""Experiences as token ids: template, length limit, criteria order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.experience import build_experiences
from herl_megatron.types import HindsightExperience, IntArray, Message
from tests.unit.hindsight.groups import make_group, make_score


class CharTokenizer:
    """One id per character; the template is `role>content|` per turn and `assistant>`."""

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        turns = "".join(f"{m.role}>{m.content}|" for m in messages)
        return self.plain_ids(turns + "assistant>")

    def plain_ids(self, text: str) -> IntArray:
        return np.array([ord(character) for character in text], np.int32)


def _text(ids: IntArray) -> str:
    return "".join(chr(i) for i in ids)


def _build(
    config: HindsightConfig, max_tokens: int = 10_000
) -> tuple[tuple[HindsightExperience, ...], int]:
    group = make_group([0.5, 0.25, 0.5])
    return build_experiences(
        group.group, group.scores, config, CharTokenizer(), max_tokens=max_tokens, seed=0
    )


def test_ids_are_the_templated_revision_prompt() -> None:
    experiences, too_long = _build(HindsightConfig())
    assert too_long == 0
    assert [e.rollout_index for e in experiences] == [0, 2]
    expected = (
        "user>Say hello.\n\nDraft:\nt2\n\nRequirements met, to keep:\n- Be short.\n\n"
        "Requirements missed, to fix:\n- Be polite.\n\nWrite only the revised answer.|assistant>"
    )
    assert _text(experiences[1].prompt_token_ids) == expected
    assert experiences[1].prompt_text == expected[len("user>") : -len("|assistant>")]
    assert (experiences[1].satisfied, experiences[1].unmet) == (("short",), ("polite",))


def test_what_is_shared_with_the_prompt_comes_first() -> None:
    experiences, _ = _build(HindsightConfig())
    plain = _text(CharTokenizer().prompt_ids((Message("user", "Say hello."),)))
    shared = plain[: -len("|assistant>")]
    assert all(_text(e.prompt_token_ids).startswith(shared) for e in experiences)


def test_without_chat_template_the_text_alone_is_tokenized() -> None:
    experiences, _ = _build(HindsightConfig(chat_template=False))
    assert _text(experiences[0].prompt_token_ids) == experiences[0].prompt_text


def test_prompt_style_is_read() -> None:
    experiences, _ = _build(HindsightConfig(prompt_style="rubric"))
    assert "Be polite. (weight 2)" in experiences[0].prompt_text


def test_too_long_is_counted_and_skipped_never_cut() -> None:
    full, _ = _build(HindsightConfig())
    length = len(full[0].prompt_token_ids)
    at_limit, skipped = _build(HindsightConfig(), max_tokens=length)
    assert (len(at_limit), skipped) == (2, 0)
    over, skipped = _build(HindsightConfig(), max_tokens=length - 1)
    assert (over, skipped) == ((), 2)


def test_criteria_follow_the_rubric_not_the_verdicts() -> None:
    group = make_group([0.0])
    scores = [make_score(0.0, (), ("polite", "short"))]
    (experience,), _ = build_experiences(
        group.group, scores, HindsightConfig(), CharTokenizer(), max_tokens=10_000, seed=0
    )
    assert "to fix:\n- Be short.\n- Be polite.\n" in experience.prompt_text
