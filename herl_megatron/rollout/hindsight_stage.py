"""The hindsight method in the rollout stream: what it proposes, as requests to an engine."""

from __future__ import annotations

from herl_megatron.config.reference_compat import is_resolved, revision_sampling
from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.hindsight.experience import PromptTokenizer
from herl_megatron.hindsight.known_methods import open_method
from herl_megatron.hindsight.method import (
    HindsightMethod,
    Proposal,
    ProposalContext,
    check_proposal,
)
from herl_megatron.rollout.pipeline_run import GroupJob
from herl_megatron.seeds import request_seed, selection_seed
from herl_megatron.types import GenerateRequest, Prompt, SamplingSettings, ScoredGroup

REVISION_PRIORITY = 1
"""Behind first samples, which whole groups wait for."""


class HindsightStage:
    """A method and what it needs of the run.

    name: of the method, as the configuration has it.
    sampling: of revisions.
    max_tokens: of the longest context that may be proposed; a longer one is skipped and counted.
    answer_after: drafts are shown from there on.
    """

    def __init__(
        self,
        method: HindsightMethod,
        name: str,
        sampling: SamplingSettings,
        *,
        max_tokens: int,
        answer_after: str,
    ) -> None:
        self._method = method
        self.name = name
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._answer_after = answer_after

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise ValueError for a prompt that the method can do nothing with."""
        self._method.check_prompt(prompt)

    def propose(
        self, job: GroupJob, scored: ScoredGroup, tokenizer: PromptTokenizer, *, run_seed: int
    ) -> Proposal:
        """What the method makes of the job's group.

        Raises:
            ValueError: a method from outside proposes what cannot be drawn.
        """
        context = ProposalContext(
            tokenizer,
            max_tokens=self._max_tokens,
            answer_after=self._answer_after,
            step=job.step,
            seed=selection_seed(run_seed, step=job.step, prompt_id=job.prompt.id),
        )
        proposal = self._method.propose(scored, context)
        check_proposal(proposal, scored, self._method)
        return proposal

    def requests(
        self, job: GroupJob, proposal: Proposal, *, run_seed: int
    ) -> list[GenerateRequest]:
        """One per experience. Its seed says which revision of which of the prompt's samples it is,
        so neither the others nor their order change it."""
        repeats = self._method.revisions_per_rollout
        asked: dict[int, int] = {}
        requests = []
        for position, experience in enumerate(proposal.experiences):
            number = asked.get(experience.rollout_index, 0)
            asked[experience.rollout_index] = number + 1
            draft = job.first_index + experience.rollout_index
            requests.append(
                GenerateRequest(
                    request_id=f"step{job.step}-prompt{job.position}-revision{position}",
                    prompt_token_ids=experience.prompt_token_ids,
                    sampling=self._sampling,
                    seed=request_seed(
                        run_seed,
                        step=job.step,
                        prompt_id=job.prompt.id,
                        kind="revision",
                        index=draft * repeats + number,
                    ),
                    priority=REVISION_PRIORITY,
                )
            )
        return requests


def open_stage(
    hindsight: HindsightConfig,
    rollout: RolloutConfig,
    *,
    max_tokens: int,
    answer_after: str = "",
) -> HindsightStage | None:
    """The stage of a configuration; None without hindsight.

    Raises:
        ValueError: as `hindsight.known_methods.open_method`.
    """
    assert is_resolved(hindsight) or not hindsight.enabled, "reference_compat: resolved by prepare"
    method = open_method(hindsight)
    if method is None:
        return None
    sampling = revision_sampling(hindsight, rollout)
    return HindsightStage(
        method, hindsight.method, sampling, max_tokens=max_tokens, answer_after=answer_after
    )
