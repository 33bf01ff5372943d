"""What one request to a judge is about, and what it is cached under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from herl_megatron.rubrics.judge.formats import JudgeFormat
from herl_megatron.rubrics.judge.wording import PROMPT_VERSION
from herl_megatron.rubrics.rubric import judge_format
from herl_megatron.types import Criterion, Prompt


@dataclass(frozen=True)
class Unit:
    """Criteria of one response that are judged together."""

    form: JudgeFormat
    prompt: Prompt
    response: str
    criteria: tuple[Criterion, ...]

    def content_key(self, *settings: object) -> str:
        """SHA-256 of all that the judgement may depend on; `settings`: model, sampling, template.

        Ids are not in it: equal statements about equal responses are one judgement.
        """
        content = {
            "version": PROMPT_VERSION,
            "form": self.form.name,
            "messages": [[m.role, m.content] for m in self.prompt.messages],
            "reference": self.prompt.reference_answer,
            "response": self.response,
            "criteria": [
                [c.description, dict(c.params), c.weight, c.polarity] for c in self.criteria
            ],
            "settings": settings,
        }
        text = json.dumps(content, ensure_ascii=True, sort_keys=True, default=str, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def split_units(prompt: Prompt, response: str, criteria: Sequence[Criterion]) -> list[Unit]:
    """The requests that judge `criteria` of one response, in the form that the rubric asks for."""
    form = judge_format(prompt.rubric)
    return [Unit(form, prompt, response, asked) for asked in form.split(criteria)]
