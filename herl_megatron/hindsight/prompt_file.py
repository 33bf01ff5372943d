"""A revision prompt of a user's own (`hindsight.prompt_file`): a text file with placeholders.

    {instruction}  the last user message of the prompt (needed)
    {draft}        the failed response
    {met}          the criteria that it meets, one `- ` line each; "none" without any
    {unmet}        the criteria that it misses, in the same way; negative ones as "avoid: ..."

At least one of the last three is needed: without, all drafts of a prompt would get the same words.
A brace that is no placeholder is written twice: {{ and }}. The text becomes the last user message;
whatever else the prompt has (a system message, earlier turns) stays before it.

Write {instruction} first: everything up to its end is then the same as in the prompt itself, and
the engine's prefix cache has it already.
"""

from __future__ import annotations

from pathlib import Path

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.files.templates import check_template, read_text
from herl_megatron.hindsight.revision_prompts import RevisionForm, RevisionTemplate

_PLACEHOLDERS = ("instruction", "draft", "met", "unmet")
_KEY = "hindsight.prompt_file"


def revision_form(config: HindsightConfig) -> RevisionForm:
    """What revision prompts look like: the file's template, read now and once, or the style.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, is empty, or has an unknown placeholder,
            a missing one or a single brace; names the file and what to do.
    """
    if not config.prompt_file:
        return config.prompt_style
    try:
        text = read_text(Path(config.prompt_file))
    except ValueError as error:
        raise ValueError(f"{_KEY}: {config.prompt_file!r} {error}") from error
    try:
        named = check_template(text, _PLACEHOLDERS, needed=("instruction",))
    except ValueError as error:
        raise ValueError(f"{_KEY} {config.prompt_file!r}: {error}") from error
    if named == {"instruction"}:
        raise ValueError(
            f"{_KEY} {config.prompt_file!r} shows neither {{draft}} nor {{met}} nor {{unmet}}, so"
            " every draft would get the same prompt; write at least one of them"
        )
    return RevisionTemplate(text, frozenset(named))
