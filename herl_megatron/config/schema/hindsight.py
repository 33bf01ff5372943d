"""Section `hindsight`: revisions and replays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from herl_megatron.config.hooks import OptionValue
from herl_megatron.config.schema.base import BY_CONTENT, MOST_AT_ONCE, Numbers, Section


class HindsightConfig(Section):
    """What is learnt from failures; docs/algorithm.md has each formula."""

    enabled: Numbers[bool] = True
    """False trains plain RLVR (group-relative policy optimisation, no revisions)."""
    reference_compat: Numbers[bool] = False
    """Use the released code's behaviour where it may have shaped published numbers. It sets
    `behavior: old`, `train_context: experience`, `chat_template: false`, revision sampling like
    first samples, `replace: random`, `no_qualified: copy_best` and `join_cut: true`; setting one of
    those keys to something else at the same time is refused."""
    threshold: Numbers[float] = 1.0
    """A group whose best reward reaches this needs no hindsight."""
    select: Numbers[Literal["best_failed", "all_failed", "random"]] = "best_failed"
    """Which rollouts become experience: those tied for the group's best reward, all that miss a
    criterion (of more than `max_experiences` those with the highest rewards), or a seeded random
    choice among these."""
    max_experiences: Numbers[int] = Field(default=16, gt=0, le=MOST_AT_ONCE)
    """At most this many experiences per group."""
    revisions_per_experience: Numbers[int] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """Revisions sampled from each experience."""
    prompt_style: Numbers[Literal["criteria", "rubric", "naive", "guided", "guided_missed"]] = (
        "criteria"
    )
    """Revision prompt: criteria to keep and to fix; the same with weights (medical rubrics); the
    draft alone with a request to improve it (the NaiveHE ablation); or no draft, but the criteria,
    all or the missed ones, as instructions (small models copy a draft that they see)."""
    prompt_file: Annotated[Numbers[str], BY_CONTENT] = ""
    """Text file with a revision prompt of your own, instead of a `prompt_style`; placeholders are
    {instruction}, {draft}, {met} and {unmet} (docs/extending_rewards.md). Empty: the style."""
    chat_template: Numbers[bool] = True
    """Render the revision prompt through the chat template."""
    temperature: Numbers[float] = Field(default=0.3, ge=0)
    """Sampling temperature of revisions."""
    top_p: Numbers[float] = Field(default=1.0, gt=0, le=1)
    """Nucleus truncation of revisions."""
    alpha: Numbers[float] = Field(default=0.05, ge=0)
    """Bonus reward coefficient; 0 gives no bonus."""
    clip_negative: Numbers[bool] = True
    """A revision worse than its draft takes nothing away from the draft's reward."""
    accept: Numbers[Literal["better", "not_worse", "all"]] = "better"
    """A revision joins if its reward is above the group's best, also if equal, or whatever it is:
    `all` with `replace: append` trains on the union of rollouts and revisions."""
    join_cut: Numbers[bool] = False
    """A revision that was cut at the length limit may join too, and teach not to end; without it
    `accept: all` is all of the others."""
    replace: Numbers[Literal["worst", "random", "append"]] = "worst"
    """Which group member gives way to a revision; `append` lets the group grow."""
    replace_top_n: Numbers[int | None] = Field(default=1, gt=0, le=MOST_AT_ONCE)
    """At most this many revisions join a group, the best ones; null sets no limit."""
    no_qualified: Numbers[Literal["keep", "copy_best"]] = "keep"
    """With no qualified revision the group stays as it is, or (released code) a copy of its best
    row overwrites a random slot."""
    train_context: Numbers[Literal["prompt", "experience"]] = "prompt"
    """Context of a revision row in training: the plain prompt x, or the revision prompt E_i."""
    behavior: Numbers[Literal["sampler", "old", "one"]] = "sampler"
    """Denominator of a revision token's ratio: as the engine drew it under E_i, the policy at the
    step's first weights in the training context, or 1."""
    gamma: Numbers[float] = Field(default=0.1, gt=0)
    """Shaping constant of f(rho) = rho / (rho + gamma)."""
    off_policy_loss: Numbers[Literal["shaped", "clip", "own"]] = "shaped"
    """Loss of revisions and replays: -A f(rho) as HeRL has it, PPO's clip of rho as HiR has, or
    `own`: what `algorithm.loss` names, a function of your own, is given their tokens too."""
    method: Numbers[str] = Field(default="revise", min_length=1)
    """What is made of failures. `revise` is HeRL; `replay` (HiR, arXiv 2512.23457) samples no
    revisions: a failed response joins its group once more, as a success of the instruction reduced
    to the criteria that it meets. `module:class` is a method of your own
    (docs/extending_methods.md)."""
    method_options: Numbers[dict[str, OptionValue]] = {}
    """Options of a method of your own, by name."""
    replays_per_group: Numbers[int] = Field(default=2, gt=0, le=MOST_AT_ONCE)
    """`replay`: at most this many replays join a group, beside its `rollout.group_size` rows."""
    replay_integrity: Numbers[float] = Field(default=2.0, ge=0)
    """`replay`: weight of the share of met criteria against a response's diversity in the choice of
    failures, at step 0."""
    replay_integrity_growth: Numbers[float] = Field(default=1.05, ge=1, le=1.5)
    """`replay`: factor of that weight per step."""
