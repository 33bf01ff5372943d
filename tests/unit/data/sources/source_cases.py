"""What the tests of data sources share: one row converted, and its prompt as training reads it."""

from __future__ import annotations

import json
from typing import Any

from herl_megatron.data.canonical_rows import prompt_from_row, row_from_prompt
from herl_megatron.data.sources.catalog import SOURCES
from herl_megatron.data.sources.common import Converted, Options, SourceRow
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.types import CriterionResult, Prompt, Scored, Verdict

DEFAULTS = Options()


def convert(source: str, fields: dict[str, Any], options: Options = DEFAULTS) -> Converted:
    """The row converted; the prompt must survive the way to its file and back."""
    converted = SOURCES[source].convert(SourceRow(7, fields), options)
    row = json.loads(json.dumps(row_from_prompt(converted.prompt)))
    assert prompt_from_row(row) == converted.prompt
    return converted


def reward(prompt: Prompt, true: set[str]) -> float:
    """The reward of a response of which exactly the named criteria's statements are true."""
    results = [
        CriterionResult(c.id, Verdict.FOLLOWED if c.id in true else Verdict.NOT_FOLLOWED)
        for c in prompt.rubric.criteria
    ]
    score = score_response(prompt.rubric, results)
    assert isinstance(score, Scored)
    return score.reward
