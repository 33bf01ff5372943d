"""From a failed rollout and its verdicts to the revision prompt E_i as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.revision_prompts import RevisionForm, plain_text, revision_messages
from herl_megatron.hindsight.select import select_experiences
from herl_megatron.rubrics.rubric import answer_part
from herl_megatron.types import (
    HindsightExperience,
    IntArray,
    Message,
    Prompt,
    RolloutGroup,
    Score,
    Scored,
)


class PromptTokenizer(Protocol):
    """What is needed of `data.chat.ChatTokenizer`."""

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        """Chat template plus generation prompt, `[prompt]`."""
        ...

    def plain_ids(self, text: str) -> IntArray:
        """The text alone, `[tokens]`."""
        ...


def build_experiences(
    group: RolloutGroup,
    scores: Sequence[Score],
    config: HindsightConfig,
    tokenizer: PromptTokenizer,
    *,
    max_tokens: int,
    seed: int,
    answer_after: str = "",
    form: RevisionForm | None = None,
) -> tuple[tuple[HindsightExperience, ...], int]:
    """The group's experiences, and how many were skipped as longer than `max_tokens`.

    Of a draft a revision prompt shows what follows `answer_after` (`scoring.answer_after`). It is
    never cut: the policy would be trained on another context than the one it sampled from, and the
    instruction would go first. `form` is as in `revision_prompt`.
    """
    built: list[HindsightExperience] = []
    too_long = 0
    for index in select_experiences(scores, config, seed):
        score = scores[index]
        assert isinstance(score, Scored), f"rollout {index} was selected without a score"
        draft = answer_part(group.rollouts[index].text, answer_after) or ""
        text, ids = revision_prompt(group.prompt, draft, score, config, tokenizer, form)
        if len(ids) > max_tokens:
            too_long += 1
        else:
            built.append(HindsightExperience(index, text, ids, score.satisfied, score.unmet))
    return tuple(built), too_long


def revision_prompt(
    prompt: Prompt,
    draft: str,
    score: Scored,
    config: HindsightConfig,
    tokenizer: PromptTokenizer,
    form: RevisionForm | None = None,
) -> tuple[str, IntArray]:
    """The revision prompt of a draft and its verdicts: for people, and `[experience]` token ids.

    form: `prompt_file.revision_form`, needed where `config` names a file; by default the style.
    """
    assert form is not None or not config.prompt_file, "the prompt file is read at the start"
    criteria = prompt.rubric.criteria
    messages = revision_messages(
        prompt,
        draft,
        [criterion for criterion in criteria if criterion.id in score.satisfied],
        [criterion for criterion in criteria if criterion.id in score.unmet],
        config.prompt_style if form is None else form,
    )
    text = plain_text(messages)
    ids = tokenizer.prompt_ids(messages) if config.chat_template else tokenizer.plain_ids(text)
    return text, ids
