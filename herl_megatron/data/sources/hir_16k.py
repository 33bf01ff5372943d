"""HIR-16K: four row types. Type 4 carries checker code, which is never run and never kept.

type1: IFEval instructions. type2: IFBench instructions. type3: MulDimIF constraints. type4:
`checker` entries marked [rule] or [llm] with `functions`, source code. `criteria` holds the same
requirements in words, one per entry: an item that no check of ours covers becomes a statement for
a judge in these words (or is left out with `judge` off), and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herl_megatron.data.sources.common import (
    Converted,
    Items,
    Options,
    RejectedRow,
    SourceRow,
    aligned,
    list_of,
    mapping_of,
    messages_of,
    rest_of,
    rule_problem,
    text_of,
)
from herl_megatron.data.sources.ifeval import instruction_criteria
from herl_megatron.data.sources.muldimif import constraint_criteria
from herl_megatron.types import Criterion, Prompt, Rubric

_TYPES = {"type1": "ifeval", "type2": "ifbench", "type3": "muldimif", "type4": "code"}
TYPES = tuple(_TYPES)
_USED = ("id", "prompt", "criteria", "source", "data_source", "ground_truth", "reward_model")


def convert_hir(row: SourceRow, options: Options) -> Converted:
    """HIR-16K: id, prompt, criteria, source, ground_truth (an object, or JSON text of one).

    The trainer's form of the same rows is read too: data_source (`ifeval`, `ifbench`, `muldimif`)
    and reward_model.ground_truth.
    """
    fields = row.fields
    kind = text_of(fields, "source", "data_source")
    kind = _TYPES.get(kind, kind)
    if kind not in _TYPES.values():
        raise RejectedRow("unknown row type", f"source is {kind!r}, not {', '.join(_TYPES)}")
    if options.types and kind not in {_TYPES[name] for name in options.types}:
        raise RejectedRow("row of another type", f"{kind!r}; asked for: {', '.join(options.types)}")
    truth = _ground_truth(fields)
    items = Items()
    if kind == "code":
        _add_code_items(truth, fields, options, items)
    else:
        _add_rule_items(kind, truth, fields, options, items)
    identity = fields.get("id")
    prompt = Prompt(
        id=f"hir-{row.number if identity is None else identity}",
        messages=messages_of(fields.get("prompt"), "prompt"),
        rubric=Rubric(items.finish(), options.aggregation or "explicit"),
        source=f"hir/{kind}",
        extra=rest_of(fields, _USED),
    )
    return Converted(prompt, tuple(items.notes))


def _ground_truth(fields: Mapping[str, Any]) -> dict[str, Any]:
    value = fields.get("ground_truth")
    if value is None:
        value = mapping_of(fields.get("reward_model"), "reward_model").get("ground_truth")
    return mapping_of(value, "ground_truth")


def _words(fields: Mapping[str, Any], count: int) -> list[str]:
    """The criteria in words, one per item; empty ones where the row has none."""
    if fields.get("criteria") is None:
        return [""] * count
    words = list_of(fields["criteria"], "criteria")
    aligned("criteria", words, "ground_truth", range(count))
    return [word if isinstance(word, str) else "" for word in words]


def _add_rule_items(
    kind: str, truth: Mapping[str, Any], fields: Mapping[str, Any], options: Options, items: Items
) -> None:
    """Types 1 to 3: rules of a benchmark; those that cannot be checked go to the judge."""
    # The trainer's form keeps MulDimIF's triples under the other name.
    names = truth.get("constraints") or truth.get("instruction_id_list")
    listed = list_of(names, "constraints" if kind == "muldimif" else "instruction_id_list")
    if kind == "muldimif":
        rules = constraint_criteria(listed)
    else:
        rules = instruction_criteria(kind, listed, list_of(truth.get("kwargs"), "kwargs"))
    for rule, words in zip(rules, _words(fields, len(rules)), strict=True):
        identity = items.next_id()
        problem = rule_problem(rule)
        if not problem:
            described = "" if words == rule.params.get("text") else words
            items.criteria.append(
                Criterion(identity, "rule", rule.check, rule.params, described.strip())
            )
            continue
        why = "unknown check" if problem == "no such check" else "unusable rule"
        _give_to_judge(words or str(rule.params.get("text", "")), why, options, items, identity)


def _add_code_items(
    truth: Mapping[str, Any], fields: Mapping[str, Any], options: Options, items: Items
) -> None:
    """Type 4: every item goes to the judge, those marked [rule] because their code is not run."""
    checkers = list_of(truth.get("checker"), "checker")
    for checker, words in zip(checkers, _words(fields, len(checkers)), strict=True):
        identity = items.next_id()
        mark, _, rest = str(checker).partition("]")
        why = "rule as code, never run" if mark == "[rule" else "marked for a judge"
        _give_to_judge(words or rest, why, options, items, identity)


def _give_to_judge(words: str, why: str, options: Options, items: Items, identity: str) -> None:
    if not options.judge:
        items.notes.append(f"{why}: left out")
    elif not words.strip():
        items.notes.append(f"{why}, and nothing in words: left out")
    else:
        items.criteria.append(Criterion(identity, "judge", description=words.strip()))
        items.notes.append(f"{why}: to the judge")
