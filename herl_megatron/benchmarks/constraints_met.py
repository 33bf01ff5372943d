"""MulDimIF: share of prompts with all constraints met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from herl_megatron.benchmarks.answered import Answered, all_met, mean, per_prompt
from herl_megatron.benchmarks.measured import Measured, Part, grouped, noted, parts_of

_FIRST: Mapping[str, str] = {
    "Citations": "Content", "Punctuation": "Content", "References": "Content",
    "Json": "Format", "Markdown": "Format", "Table": "Format", "XML": "Format",
    "Paragraphs": "Length", "Sentences": "Length", "Words": "Length",
}  # fmt: skip
_BOTH: Mapping[str, str] = {
    "Content/Length": "Length", "Format/Blurb": "Length", "Format/Length": "Length",
    "Format/Word Count": "Length", "Format/Bullet Points": "Content", "Format/Text": "Content",
}  # fmt: skip
"""Labels of the data set that belong to another of the benchmark's four categories than the first
label says (MulDimIF's `constraint_mapping`)."""


def constraints_met(answered: Sequence[Answered]) -> Measured:
    """`overall` (the headline): share of prompts with all constraints met. `constraint`: share of
    constraints.

    Parts: `pattern` and `difficulty` of the prompts; `category`: of the prompts that have
    constraints of a category, those which meet all of these.
    """
    prompts = per_prompt(answered, all_met)
    sides = [(len(s.satisfied), len(s.unmet)) for one in answered for s in one.scored]
    followed = sum(good for good, _ in sides)
    metrics = {
        "overall": mean([value for _, value in prompts]),
        "constraint": followed / (followed + sum(bad for _, bad in sides)),
    }
    parts = {
        "category": _by_category(answered),
        "pattern": grouped(prompts, lambda prompt: noted(prompt, "constraint_pattern")),
        "difficulty": grouped(prompts, lambda prompt: noted(prompt, "difficulty")),
    }
    return Measured("overall", [value for _, value in prompts], metrics, parts)


def _by_category(answered: Sequence[Answered]) -> dict[str, Part]:
    found: dict[str, list[float]] = {}
    for one in answered:
        for name, ids in _ids_by_category(one).items():
            met = [
                float(not ids & set(score.unmet))
                for score in one.scored
                if ids & {*score.satisfied, *score.unmet}
            ]
            if met:
                found.setdefault(name, []).append(mean(met))
    return parts_of(found)


def _ids_by_category(one: Answered) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {}
    for criterion in one.prompt.rubric.criteria:
        labels = criterion.check.removeprefix("muldimif/")
        ids.setdefault(category(labels), set()).add(criterion.id)
    return ids


def category(labels: str) -> str:
    """Content, Format, Language or Length, of a constraint's two labels as in `Table/Row limit`."""
    first, _, second = labels.partition("/")
    plain = f"{first}/{second.partition(':')[0]}"
    return _BOTH.get(plain, _FIRST.get(first, first))
