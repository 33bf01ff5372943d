"""The values that pass between stages.

Flow, one way: `Prompt -> RolloutGroup -> ScoredGroup -> (HindsightExperience -> Revision) ->
ScoredGroup -> TrainBatch -> StepMetrics -> weight version`. A stage takes the previous stage's type
and returns a new one; nothing here is edited after it was built. Token arrays are NumPy so that
they cross process borders without a copy per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from herl_megatron.array_text import ArrayText

IntArray = Annotated[NDArray[np.int32], ArrayText("<i4")]
"""Token ids, `[tokens]`."""
FloatArray = Annotated[NDArray[np.float32], ArrayText("<f4")]
"""One float per token, `[tokens]`."""
BoolArray = Annotated[NDArray[np.bool_], ArrayText("|b1")]
"""One flag per token, `[tokens]`."""

DeviceKind = Literal["cpu", "cuda"]
FinishReason = Literal["stop", "length", "abort"]
Role = Literal["system", "user", "assistant"]
Aggregation = Literal[
    "explicit",
    "all_or_nothing",
    "implicit",
    "rar",
    "healthbench",
    "writingbench",
    "llmeval_med",
    "herl_reference",
]
"""How verdicts become a reward; each formula is in `rubrics.aggregations`."""
Polarity = Literal["positive", "negative"]


class Verdict(str, Enum):
    """What a check or a judge says about one criterion and one response."""

    FOLLOWED = "followed"
    NOT_FOLLOWED = "not_followed"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True)
class Message:
    """One chat turn."""

    role: Role
    content: str


@dataclass(frozen=True)
class Criterion:
    """One requirement of a rubric: a named rule check, or a statement for a judge.

    `description` is shown to people and to hindsight prompts; for a rule it may be empty, the
    registered check then describes itself. `params` of a judge criterion, as `data.sources` fills
    them: `bands` (WritingBench: "1-2" to "9-10", each with what it takes), `category` (RaR:
    Essential, Important, Optional, Pitfall; LLMEval-Med: the question's), `title`.
    """

    id: str
    kind: Literal["rule", "judge"]
    check: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    weight: float = 1.0
    polarity: Polarity = "positive"


@dataclass(frozen=True)
class Rubric:
    """The criteria of one prompt and the name of the rule that turns verdicts into a reward."""

    criteria: tuple[Criterion, ...]
    aggregation: Aggregation = "explicit"


@dataclass(frozen=True)
class Prompt:
    """One row of the prompt data set (filled by `data.prompt_source`)."""

    id: str
    messages: tuple[Message, ...]
    rubric: Rubric
    source: str = ""
    reference_answer: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CriterionResult:
    """The verdict on one criterion for one response (filled by `rubrics.pool`, `rubrics.client`).

    `verdict` is about the statement as written; `polarity` is applied by `rubrics.rubric`.
    `for_every_response` marks an unverifiable criterion that no response to this prompt could have
    passed or failed (unknown check, missing data): it is left out for the whole prompt, whereas
    a failure on this one response makes the response unscored.
    `grade` is there where the judge grades (`rubrics.aggregations.graded_result`): its grade over
    the top of its scale, in (0, 1]. One grade for the whole rubric stands in every result. A check
    that returns a number has it there too (`rubrics.credit`), in [0, 1].
    """

    criterion_id: str
    verdict: Verdict
    reason: str = ""
    for_every_response: bool = False
    grade: float | None = None


@dataclass(frozen=True)
class Scored:
    """A response with a reward in the rubric's scale, and the verdicts behind it.

    `satisfied` names the criteria that count in the response's favour, `unmet` those that count
    against it (polarity applied); unverifiable ones are in neither, `left_out` names them. So
    nothing unmet does not mean that the whole rubric is met. `rubric_reward` is the rubric's own
    where `reward` is what `scoring.group_reward` made of it, else None.
    """

    reward: float
    results: tuple[CriterionResult, ...]
    satisfied: tuple[str, ...]
    unmet: tuple[str, ...]
    rubric_reward: float | None = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """The criteria of the rubric that the reward says nothing about."""
        return tuple(r.criterion_id for r in self.results if r.verdict is Verdict.UNVERIFIABLE)


@dataclass(frozen=True)
class Unscored:
    """A response that has no reward. It is masked and counted, never given a number."""

    reason: str
    results: tuple[CriterionResult, ...] = ()


Score = Scored | Unscored


@dataclass(frozen=True)
class GroupToReward:
    """What a function of a user's is given (`scoring.group_reward`): a prompt, with its rubric, and
    all responses of one group.

    texts: what is scored of each response (`scoring.answer_after`), "" where it has no answer.
    scores: of each by the rubric: `Scored` with its reward and verdicts, or `Unscored`.
    """

    prompt: Prompt
    texts: tuple[str, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class SamplingSettings:
    """How the engine draws tokens. `top_k` of -1 keeps every token; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 1024


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """One sequence to sample. `seed` makes it independent of what else is in the batch."""

    request_id: str
    prompt_token_ids: IntArray
    sampling: SamplingSettings
    seed: int
    priority: int = 0
    """Lower is served first; revisions queue behind first samples."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a response that one version of the weights drew."""

    weight_version: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Completion:
    """What the engine returns for one `GenerateRequest`, or a conversation of several put together.

    token_ids: `[response]` int32, the end token included when `finish_reason` is `stop`.
    log_probs: `[drawn]` float32, under the distribution the token was drawn from (after
        temperature and truncation), each by the weights that drew it.
    weight_version: the version of the weights that drew the tokens, or the last of them.
    earlier: what older weights drew before a weight sync interrupted the response, in order
        (filled by `rollout.carry`); empty in `rollout.mode: sync`.
    drawn: `[response]`, which tokens the policy drew; the others it was told between its turns
        (`rollout.conversation`). None where it drew all, as of any engine's answer.
    """

    request_id: str
    token_ids: IntArray
    log_probs: FloatArray
    finish_reason: FinishReason
    weight_version: int
    earlier: tuple[Segment, ...] = ()
    drawn: BoolArray | None = None

    @property
    def drawn_token_ids(self) -> IntArray:
        """`[drawn]`, without what the policy was told."""
        return self.token_ids if self.drawn is None else self.token_ids[self.drawn]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All drawn tokens by the version that drew them, in order; empty without tokens."""
        last = len(self.drawn_token_ids) - sum(segment.tokens for segment in self.earlier)
        return self.earlier + ((Segment(self.weight_version, last),) if last else ())


@dataclass(frozen=True)
class Turn:
    """A part of a response of several turns: what the policy drew, or what it was told then."""

    drawn: bool
    text: str
    tokens: int


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response. `text` is decoded without special tokens, for checks and people.

    Of several turns `text` is the last that the policy drew; `turns` has all, else it is empty.
    """

    index: int
    completion: Completion
    text: str
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, eq=False)
class RolloutGroup:
    """The rollouts of one prompt. `prompt_token_ids` is `[prompt]`, chat template applied."""

    prompt: Prompt
    prompt_token_ids: IntArray
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, eq=False)
class HindsightExperience:
    """A failed rollout and its verdicts turned into context for a revision.

    `prompt_token_ids` is `[experience]`: the revision prompt E_i as the engine sees it.
    """

    rollout_index: int
    prompt_text: str
    prompt_token_ids: IntArray
    satisfied: tuple[str, ...]
    unmet: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Revision:
    """A response sampled under a hindsight experience, scored by the prompt's own rubric."""

    experience: HindsightExperience
    rollout: Rollout
    score: Score


@dataclass(frozen=True, eq=False)
class Replay:
    """A failed rollout as a success of the instruction reduced to what it meets (HiR).

    `prompt_token_ids` is `[context]`: the reduced prompt, which the rollout was not sampled from.
    `reward` is what its row trains on: 1, since the response meets the whole of that instruction.
    """

    rollout_index: int
    prompt_text: str
    prompt_token_ids: IntArray
    satisfied: tuple[str, ...]
    reward: float = 1.0


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """A group with one score per rollout and, when hindsight ran, its revisions or its replays.

    `experiences_too_long` counts experiences that did not fit the prompt limit and were skipped,
    `replays_impossible` failed rollouts whose instruction cannot be reduced.
    """

    group: RolloutGroup
    scores: tuple[Score, ...]
    revisions: tuple[Revision, ...] = ()
    experiences_too_long: int = 0
    replays: tuple[Replay, ...] = ()
    replays_impossible: int = 0


@dataclass(frozen=True)
class RowOrigin:
    """Where a row of the joined group comes from (filled by `hindsight.method`).

    rollout_index: the rollout itself, the draft behind a revision, or the rollout that was copied
        or is replayed.
    revision_index: position in `ScoredGroup.revisions` for a revision's row, else None.
    replaces: the rollout whose place the row takes; None for a rollout in its own place and for
        an appended revision.
    """

    rollout_index: int
    revision_index: int | None = None
    replaces: int | None = None
    replay_index: int | None = None
    """Position in `ScoredGroup.replays` for a replay's row, else None."""

    @property
    def off_policy(self) -> bool:
        """Whether the row's response was not sampled from its prompt x."""
        return self.revision_index is not None or self.replay_index is not None


@dataclass(frozen=True, eq=False)
class TokenRow:
    """A response in its context: all that a log-prob or a supervised step needs.

    prompt_id: names the row in messages; of a row from a file also its line.
    context_token_ids: `[context]`.
    response_token_ids: `[response]`.
    drawn: `[response]`, which tokens of the response count; the others are context like those
        before it: no loss, no log-prob, in no mean. None where all count.
    """

    prompt_id: str
    context_token_ids: IntArray
    response_token_ids: IntArray
    drawn: BoolArray | None = field(default=None, kw_only=True)

    @property
    def targets(self) -> IntArray:
        """`[drawn]`: the tokens that the row is trained on."""
        return (
            self.response_token_ids if self.drawn is None else self.response_token_ids[self.drawn]
        )

    @property
    def tokens(self) -> int:
        """Context plus response length in tokens."""
        return len(self.context_token_ids) + len(self.response_token_ids)

    @property
    def in_loss(self) -> bool:
        """Whether the row has a share in the loss; one without travels to no rank."""
        return True


@dataclass(frozen=True, eq=False)
class CoefficientRow(TokenRow):
    """A row of a loss over whole responses in its second pass (`algos.losses_dpo`).

    coefficient: what the log-prob of the response is multiplied with.
    """

    coefficient: float


@dataclass(frozen=True, eq=False)
class TrainRow(TokenRow):
    """One row of a train batch: a response in its training context.

    The context is the prompt x (or E_i under `train_context: experience`).

    rollout_log_probs: `[drawn]`, as the engine reported them (the behaviour policy's).
    reward: what the row trains on, bonus included; None for a row without one.
    advantage: group-relative, the same for every token of the row.
    off_policy: whether the response was not sampled from its prompt x: a revision's, or a replay's.
    weight: 0 for rows that are masked from the loss (no valid reward, no spread), else 1.
    old_log_probs, ref_log_probs: `[drawn]` under the step's first weights and under the
        reference; None before they are computed, and where the loss does not ask for them.
    """

    rollout_log_probs: FloatArray
    reward: float | None
    advantage: float
    off_policy: bool = False
    weight: float = 1.0
    old_log_probs: FloatArray | None = None
    ref_log_probs: FloatArray | None = None

    @property
    def in_loss(self) -> bool:
        """See `TokenRow.in_loss`."""
        return self.weight > 0


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """The rows of one step, split into the rows of each optimizer step, in training order."""

    optimizer_steps: tuple[tuple[TrainRow, ...], ...]

    @property
    def rows(self) -> tuple[TrainRow, ...]:
        """All rows, in order."""
        return tuple(row for rows in self.optimizer_steps for row in rows)


@dataclass(frozen=True)
class StepMetrics:
    """Named numbers of one step (`stage/name`), as written to `metrics.jsonl`."""

    step: int
    values: Mapping[str, float]
