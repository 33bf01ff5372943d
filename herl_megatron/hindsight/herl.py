"""HeRL, `hindsight.method: revise`: failures with their verdicts are shown and revised.

Select, experience, bonus and join are each a function of its own, beside this file
(docs/algorithm.md; arXiv 2603.20046).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from herl_megatron.config.schema import RolloutConfig
from herl_megatron.hindsight.experience import build_experiences
from herl_megatron.hindsight.method import (
    JOIN_KEYS,
    REVISION_KEYS,
    HindsightMethod,
    Proposal,
    ProposalContext,
)
from herl_megatron.hindsight.prompt_file import revision_form
from herl_megatron.hindsight.revision_prompts import RevisionForm, check_prompts
from herl_megatron.types import Prompt, ScoredGroup


class HeRL(HindsightMethod):
    """Revisions of the best failures of a group that none of its responses succeeded in."""

    keys = (
        REVISION_KEYS
        | JOIN_KEYS
        | {
            "reference_compat",
            "select",
            "max_experiences",
            "revisions_per_experience",
            "prompt_style",
            "prompt_file",
            "chat_template",
        }
    )

    @cached_property
    def form(self) -> RevisionForm:
        """What revision prompts look like: the style, or the user's file, which is read once.

        Raises:
            ValueError: as `revision_form`.
        """
        return revision_form(self.config)

    @property
    def revisions_per_rollout(self) -> int:
        """See `HindsightMethod.revisions_per_rollout`."""
        return self.config.revisions_per_experience

    def most_revisions(self, group_size: int) -> int:
        """See `HindsightMethod.most_revisions`."""
        return min(group_size, self.config.max_experiences) * self.revisions_per_rollout

    def problems(self, rollout: RolloutConfig) -> Iterator[str]:
        """See `HindsightMethod.problems`."""
        yield from super().problems(rollout)
        hindsight = self.config
        if hindsight.temperature == 0 and not hindsight.reference_compat:
            if hindsight.behavior == "sampler":
                yield (
                    "hindsight.temperature is 0 with hindsight.behavior 'sampler': a greedy sampler"
                    " has no token probabilities; raise the temperature, or use behavior 'old' or"
                    " 'one'"
                )
            if hindsight.revisions_per_experience > 1:
                yield (
                    "hindsight.temperature is 0 with hindsight.revisions_per_experience"
                    f" {hindsight.revisions_per_experience}: they would be equal; use 1"
                )

    def check_prompt(self, prompt: Prompt) -> None:
        """See `HindsightMethod.check_prompt`: every criterion must render before work starts."""
        check_prompts([prompt], self.form)

    def propose(self, group: ScoredGroup, context: ProposalContext) -> Proposal:
        """Each experience as often as it is revised."""
        experiences, too_long = build_experiences(
            group.group,
            group.scores,
            self.config,
            context.tokenizer,
            max_tokens=context.max_tokens,
            seed=context.seed,
            answer_after=context.answer_after,
            form=self.form,
        )
        repeats = range(self.config.revisions_per_experience)
        return Proposal(tuple(e for e in experiences for _ in repeats), too_long=too_long)
