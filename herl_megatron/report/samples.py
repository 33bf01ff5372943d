"""Sample groups for the page: draft and revision side by side, criteria marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herl_megatron.report.html import Html, join, table, tag, text
from herl_megatron.report.records import Record
from herl_megatron.report.rollouts import CriterionNames, changes

_MAX_CHARS = 4000
_MARKS = {True: ("ok", "met"), False: ("bad", "missed"), None: ("na", "not judged")}
_CHANGE_TAGS = {"added": "ins", "removed": "del"}


def sample(step: int, record: Record, names: CriterionNames, *, opened: bool) -> Html:
    """One group: its prompt, each revision beside its draft and each replay beside what it answers,
    then the whole group as a table."""
    criteria = names.text(record)
    prompt = join(
        tag("div", tag("b", text(m["role"])), tag("pre", text(_cut(m["content"]))))
        for m in record["messages"]
    )
    pairs = [_pair(record, revision, criteria) for revision in record.get("revisions", ())]
    pairs += [_replay(record, replay, criteria) for replay in record.get("replays", ())]
    note = "" if pairs else " No revision was sampled for it."
    rewards = [_reward(r) for r in record["rollouts"]]
    title = f"step {step}, prompt {record['prompt_id']}: rewards {', '.join(rewards)}.{note}"
    inside = [tag("div", prompt, css="prompt"), *pairs, _whole_group(record, criteria)]
    flags = {"open": "open"} if opened else {}
    return tag("details", tag("summary", text(title)), *inside, css="sample", **flags)


def _pair(record: Record, revision: Mapping[str, Any], criteria: Mapping[str, str]) -> Html:
    draft = record["rollouts"][revision["parent"]]
    left = tag(
        "div",
        tag("h4", text(f"draft, rollout {draft['index']}: reward {_reward(draft)}")),
        tag("pre", text(_cut(draft["text"]))),
        _verdicts(draft, criteria),
    )
    right = tag(
        "div",
        tag("h4", text(f"revision: reward {_reward(revision)}, {_fate(revision)}")),
        tag("pre", _diff(draft["text"], revision["text"])),
        _verdicts(revision, criteria, before=draft),
    )
    return tag("div", left, right, css="pair")


def _replay(record: Record, replay: Mapping[str, Any], criteria: Mapping[str, str]) -> Html:
    """A failed response, and the instruction of which it is replayed as a success."""
    failed = record["rollouts"][replay["of"]]
    left = tag(
        "div",
        tag("h4", text(f"rollout {failed['index']}: reward {_reward(failed)}")),
        tag("pre", text(_cut(failed["text"]))),
        _verdicts(failed, criteria),
    )
    right = tag(
        "div",
        tag("h4", text("replayed as a success of")),
        tag("pre", text(_cut(replay["prompt"]))),
    )
    return tag("div", left, right, css="pair")


def _diff(draft: str, revision: str) -> Html:
    """The revision with what was added and what was removed; plain where that would be a mess."""
    if max(len(draft), len(revision)) > _MAX_CHARS:
        return text(_cut(revision))
    return join(
        tag(_CHANGE_TAGS[kind], text(words)) if kind != "same" else text(words)
        for kind, words in changes(draft, revision)
    )


def _verdicts(
    response: Mapping[str, Any],
    criteria: Mapping[str, str],
    *,
    before: Mapping[str, Any] | None = None,
) -> Html:
    """One line per criterion with grade and reason, and what it was `before` if it changed."""
    reasons = {v["criterion"]: _why(v) for v in response["verdicts"]}
    items = []
    for criterion in [*criteria, *(key for key in reasons if key not in criteria)]:
        css, word = _MARKS[_holds(response, criterion)]
        reason = f" ({reasons[criterion]})" if reasons.get(criterion) else ""
        label = text(f" {criteria.get(criterion, criterion)}{reason}")
        was = _MARKS[_holds(before, criterion)][1] if before else word
        change = tag("b", text(f" (was {was})")) if was != word else Html("")
        items.append(tag("li", tag("span", text(word), css=f"mark {css}"), label, change))
    if response["unscored"]:
        items.append(tag("li", text(f"unscored: {response['unscored']}")))
    return tag("ul", *items, css="verdicts")


def _why(verdict: Mapping[str, Any]) -> str:
    """The grade of a judge or the number of a check, and the reason, as far as there are any."""
    grade = verdict.get("grade")
    parts = ("" if grade is None else f"{grade:.3g} of 1", verdict["reason"])
    return "; ".join(part for part in parts if part)


def _whole_group(record: Record, criteria: Mapping[str, str]) -> Html:
    rows = []
    for rollout in record["rollouts"]:
        met = f"{len(rollout['satisfied'])} of {len(criteria) or len(rollout['verdicts'])}"
        row = rollout.get("row")
        advantage = f"{row['advantage']:+.2f}" if row else "gave way" if "row" in rollout else "-"
        cells = (str(rollout["index"]), _reward(rollout), met, advantage, _cut(rollout["text"]))
        rows.append([text(cell) for cell in cells])
    head = ("rollout", "reward", "met", "advantage", "text")
    inside = table(head, rows, css="group")
    return tag("details", tag("summary", text("all rollouts of the group")), inside)


def _holds(response: Mapping[str, Any], criterion: str) -> bool | None:
    """Polarity is already applied in `satisfied` and `unmet`."""
    if criterion in response["satisfied"]:
        return True
    return False if criterion in response["unmet"] else None


def _fate(revision: Mapping[str, Any]) -> str:
    if "accepted" not in revision:
        return "the run stopped before it could join"
    if not revision["accepted"]:
        return "did not join training"
    replaced = revision["replaces"]
    return "joined training" + ("" if replaced is None else f" in place of rollout {replaced}")


def _reward(response: Mapping[str, Any]) -> str:
    return "none" if response["reward"] is None else f"{response['reward']:.3g}"


def _cut(words: str) -> str:
    """At most `_MAX_CHARS`, saying how much is left out."""
    more = len(words) - _MAX_CHARS
    return words if more <= 0 else f"{words[:_MAX_CHARS]} [{more} more characters]"
