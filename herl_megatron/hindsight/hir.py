"""HiR, `hindsight.method: replay`: a failed response as a success of a smaller instruction.

A response that meets some criteria of its prompt and misses others answers the instruction that
asks for the met ones alone. It is replayed in that context, with the reward of a whole success,
beside the rows that it was sampled with (HiR, arXiv 2512.23457).

Which failures: of a group's candidates the `replays_per_group` with the highest

    integrity * F_int + F_div,    integrity = replay_integrity * replay_integrity_growth ^ step

F_int is the share of met criteria. F_div is the mean of -log mu over the response's tokens, the
estimate of the sampling distribution's mean entropy that its own tokens give; the released code
averages the full entropies and ranks the whole batch together, here a group is by itself.

How the instruction is reduced: the wording of each missed criterion is taken out of the last user
message, where it must stand word for word, once. A row may name its task without criteria instead,
in `extra.instruction`; the met ones are then listed below it. Other failures are counted, not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import fmean

from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.hindsight.experience import PromptTokenizer
from herl_megatron.hindsight.method import (
    HindsightMethod,
    Join,
    Proposal,
    ProposalContext,
    plain_join,
    replay_rows,
)
from herl_megatron.hindsight.revision_prompts import plain_text
from herl_megatron.rubrics.rubric import answer_part, describe
from herl_megatron.types import (
    Criterion,
    Message,
    Prompt,
    Replay,
    RolloutGroup,
    Score,
    Scored,
    ScoredGroup,
)

_AGGREGATIONS = ("explicit", "all_or_nothing", "herl_reference")
"""Those under which that is the reward of a response which meets everything."""
_LAST_GROWTH_STEP, _MAX_INTEGRITY = 1000, 1e6
"""A power without end would overflow; at such a weight the share decides and diversity settles
ties, which a larger one would round away."""
_MARKER = re.compile(r"\s*(?:[-*]|\d+[.)])?\s*")
_NUMBERED = re.compile(r"(\s*)(\d+)([.)]\s.*)", re.DOTALL)


class HiR(HindsightMethod):
    """Replays of failed responses; nothing is sampled."""

    keys = frozenset({"replays_per_group", "replay_integrity", "replay_integrity_growth"})
    samples = False
    gives_rewards = True

    @property
    def rows_added(self) -> int:
        """See `HindsightMethod.rows_added`."""
        return self.config.replays_per_group

    def problems(self, rollout: RolloutConfig) -> Iterator[str]:
        """See `HindsightMethod.problems`."""
        if self.config.behavior == "sampler" and rollout.temperature == 0:
            yield (
                "hindsight.method is 'replay' with rollout.temperature 0: a greedy sampler has no"
                " token probabilities; raise it"
            )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """See `HindsightMethod.check_prompts`."""
        check_replayable(prompts)

    def propose(self, group: ScoredGroup, context: ProposalContext) -> Proposal:
        """The replays that `build_replays` chooses; all of them join."""
        replays, impossible = build_replays(
            group.group,
            group.scores,
            self.config,
            context.tokenizer,
            step=context.step,
            max_tokens=context.max_tokens,
            answer_after=context.answer_after,
        )
        return Proposal(replays=replays, impossible=impossible)

    def join(self, group: ScoredGroup, seed: int) -> Join:
        """The group as it was sampled, and its replays."""
        plain = plain_join(group)
        return Join(plain.bonuses, plain.origins + replay_rows(group))


def build_replays(
    group: RolloutGroup,
    scores: Sequence[Score],
    config: HindsightConfig,
    tokenizer: PromptTokenizer,
    *,
    step: int,
    max_tokens: int,
    answer_after: str = "",
) -> tuple[tuple[Replay, ...], int]:
    """The group's replays, best first, and how many candidates have no reduced instruction (or
    one longer than `max_tokens`).

    A response with nothing after `answer_after` (`scoring.answer_after`) is no candidate: it can
    meet what is to be avoided or limited, and is the success of no instruction.
    """
    growth = config.replay_integrity_growth ** min(step, _LAST_GROWTH_STEP)
    weight = min(config.replay_integrity * growth, _MAX_INTEGRITY)
    ranked: list[tuple[float, Replay]] = []
    impossible = 0
    for index, score in enumerate(scores):
        answer = answer_part(group.rollouts[index].text, answer_after) or ""
        if not (isinstance(score, Scored) and score.satisfied and score.unmet and answer.strip()):
            continue
        messages = reduced_messages(group.prompt, satisfied=score.satisfied, unmet=score.unmet)
        ids = None if messages is None else tokenizer.prompt_ids(messages)
        if messages is None or ids is None or len(ids) > max_tokens:
            impossible += 1
            continue
        share = len(score.satisfied) / (len(score.satisfied) + len(score.unmet))
        surprise = -fmean(group.rollouts[index].completion.log_probs.tolist())
        replay = Replay(index, plain_text(messages), ids, score.satisfied)
        ranked.append((weight * share + surprise, replay))
    ranked.sort(key=lambda item: (-item[0], item[1].rollout_index))
    return tuple(replay for _, replay in ranked[: config.replays_per_group]), impossible


def reduced_messages(
    prompt: Prompt, *, satisfied: Sequence[str], unmet: Sequence[str]
) -> tuple[Message, ...] | None:
    """The prompt asking for the criteria `satisfied` alone; None where it cannot be made.

    Criteria in neither list (unverifiable ones) stay as they are in the message.
    """
    by_id = {criterion.id: criterion for criterion in prompt.rubric.criteria}
    dropped = [describe(by_id[name]) for name in unmet]
    kept = [describe(criterion) for criterion in by_id.values() if criterion.id not in unmet]
    text = without_wordings(prompt.messages[-1].content, dropped, kept)
    if text is None:
        task = prompt.extra.get("instruction")
        if not isinstance(task, str) or not task.strip():
            return None
        lines = [f"- {_wish(by_id[name])}" for name in satisfied]
        text = "\n".join([task.strip(), "", *lines])
    return (*prompt.messages[:-1], Message("user", text))


def check_replayable(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError where replay would mean nothing or never happen.

    That is: an aggregation whose full reward is not 1, a prompt that does not end with the user, or
    no row at all whose instruction can be reduced.
    """
    for prompt in prompts:
        if prompt.rubric.aggregation not in _AGGREGATIONS:
            raise ValueError(
                f"prompt {prompt.id!r}: hindsight.method 'replay' gives a replayed response the"
                f" reward 1 of a whole success, which aggregation {prompt.rubric.aggregation!r}"
                f" does not have; use one of {', '.join(_AGGREGATIONS)}, or method 'revise'"
            )
    if not any(_can_be_reduced(prompt) for prompt in prompts):
        raise ValueError(
            f"hindsight.method is 'replay', but none of the {len(prompts)} prompts states a"
            " criterion in its description's words, so no instruction can be reduced; give rows"
            " descriptions as they stand in the message, or extra.instruction"
        )


def without_wordings(text: str, dropped: Sequence[str], kept: Sequence[str]) -> str | None:
    """`text` without the sentences or list entries `dropped`, and with all of `kept` that it had.

    None where one of `dropped` is not in it exactly once, or is part of one of `kept`, so that
    taking it out would say something else.
    """
    if any(not wording or text.count(wording) != 1 for wording in dropped):
        return None
    had = [wording for wording in kept if wording and wording in text]
    lines = text.split("\n")
    for wording in dropped:
        if "\n" in wording:
            return None
        row = next((i for i, line in enumerate(lines) if wording in line), None)
        if row is None:  # it overlapped another one that is gone
            return None
        rest = _cut(lines[row], wording)
        lines[row : row + 1] = [] if _MARKER.fullmatch(rest) else [rest]
    reduced = _renumbered(lines, before=text.split("\n"))
    if not reduced.strip() or any(wording not in reduced for wording in had):
        return None
    return reduced


def _cut(line: str, wording: str) -> str:
    """The line without the wording, its closing mark and the gap that it leaves."""
    before, after = line.split(wording)
    if wording[-1].isalnum():
        after = re.sub(r"^[.,;!]", "", after)
    joined = f"{before.rstrip()} {after.lstrip()}" if before.strip() else after.lstrip()
    return joined.rstrip()


def _renumbered(lines: Sequence[str], *, before: Sequence[str]) -> str:
    """The lines as text, a list that counted 1, 2, 3 ... counting so again."""
    counted = [int(match[2]) for line in before if (match := _NUMBERED.fullmatch(line))]
    if counted != list(range(1, len(counted) + 1)):
        return "\n".join(lines).rstrip()
    number, result = 0, []
    for line in lines:
        if match := _NUMBERED.fullmatch(line):
            number += 1
            line = f"{match[1]}{number}{match[3]}"
        result.append(line)
    return "\n".join(result).rstrip()


def _can_be_reduced(prompt: Prompt) -> bool:
    """Whether missing one criterion alone gives a smaller instruction."""
    names = [criterion.id for criterion in prompt.rubric.criteria]
    return len(names) > 1 and any(
        reduced_messages(prompt, satisfied=[n for n in names if n != name], unmet=[name])
        for name in names
    )


def _wish(criterion: Criterion) -> str:
    text = describe(criterion)
    return f"avoid: {text}" if criterion.polarity == "negative" else text
