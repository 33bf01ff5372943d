"""A chat template with the arguments and the date that it is rendered with."""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from herl_megatron.types import Message

_SET_BY_US = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "documents",
        "max_length", "messages", "padding", "raise_exception", "return_dict", "return_tensors",
        "return_assistant_tokens_mask", "strftime_now", "tokenize", "tokenizer_kwargs", "tools",
        "truncation",
    }
)  # fmt: skip
"""Names that are no arguments of a template, or that every rendering sets."""


def has_template(folder: str | Path) -> bool:
    """Whether a model's folder has a chat template."""
    return bool(_written(Path(folder)))


def reads_date(folder: str | Path) -> bool:
    """Whether the chat template in a model's folder asks for the day on which it is rendered."""
    return "strftime_now" in _written(Path(folder))


def _written(folder: Path) -> str:
    """The template's source, in a file of its own or in the tokenizer's; empty without one."""
    own, configured = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(configured.read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""  # who loads the tokenizer says what is wrong
    return found if isinstance(found, str) else json.dumps(found, allow_nan=False)


class ChatTemplate:
    """The template of a tokenizer, rendered always with the same arguments and date."""

    def __init__(
        self, tokenizer: Any, *, arguments: Mapping[str, Any] | None = None, date: str = ""
    ) -> None:
        """
        arguments: of the template, `data.chat_template_args`.
        date: of `strftime_now`, as YYYY-MM-DD; empty: today, whenever that is.

        Raises:
            ValueError: the template has no such argument.
        """
        self._tokenizer = tokenizer
        self._arguments = dict(arguments or {})
        for name in self._arguments:
            _check_argument(name, self.source, sorted(tokenizer.special_tokens_map))
        if date:
            day = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time())
            self._arguments["strftime_now"] = day.strftime

    @property
    def source(self) -> str:
        """The template's source; of several all, by name."""
        template = self._tokenizer.chat_template
        if isinstance(template, str):
            return template
        return json.dumps(template, sort_keys=True, allow_nan=False)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """The text of the messages, with the prompt for an answer if that is asked for.

        Raises:
            ValueError: the template cannot be read, or refuses the messages.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **self._arguments,
                )
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template cannot be read, line {error.lineno}: {error}; mend it"
            ) from error
        except Exception as error:  # a template is a program, by whoever made the model
            roles = ", ".join(message.role for message in messages)
            raise ValueError(
                f"the chat template refuses messages of {roles}: {error}"
                f" ({type(error).__name__}); give messages that the model takes, or mend the"
                " template"
            ) from error


def _check_argument(name: str, source: str, special: Sequence[str]) -> None:
    if name in _SET_BY_US or name in special:
        raise ValueError(
            f"data.chat_template_args: {name!r} is set by herl or the tokenizer; take it out"
        )
    words = set(re.findall(r"[A-Za-z_]\w*", source))
    if name not in words:
        near = difflib.get_close_matches(name, words - _SET_BY_US, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "take it out"
        raise ValueError(
            f"data.chat_template_args: the chat template of model.path never reads {name!r}, so it"
            f" would change nothing; {hint}"
        )
