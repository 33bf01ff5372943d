"""What a YAML file says and does not mean: numbers of YAML 1.1, and the environment's secrets.

`010` is 8 and `1:30` is 90 in YAML 1.1, which everybody's loader speaks and nobody writes; one who
writes them means something else. `1e-400` is read as 0, which means something else too.
`${oc.env:KEY}` is replaced by what it stands for, and that is what a run's `config.yaml` would
hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import yaml
from omegaconf._yaml import get_yaml_loader

from herl_megatron.config.schema import Config
from herl_megatron.config.secrets import shown, shown_path

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_OTHER_THAN_TEXT = (_INT, _FLOAT, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\b")
ENVIRONMENT = (
    "${oc.env:...} would be written in clear into the run's config.yaml and logs; name the variable"
    " of a judge's key in judge.api_key_env, and give anything else as an override, which the shell"
    ' fills in: KEY="$VARIABLE"'
)
"""Why no value comes from the environment, and what to do instead."""


def traps_in_file(text: str) -> Iterator[str]:
    """One problem per trap in a YAML text, with its key and line; none if it cannot be read."""
    yield from _traps(text, path=(), line=True)


def traps_in_overrides(overrides: Sequence[str]) -> Iterator[str]:
    """The same for `section.key=value`."""
    for override in overrides:
        key, _, value = override.partition("=")
        path = tuple(key.split("."))
        if lost := _comment(value):
            yield (
                f"{shown_path(path)}: of {shown(key, value)} the last {len(lost)} characters would"
                " be lost, as a comment of YAML; put a text with ' #' in it in quotes, and these"
                f""" in the shell's: '{shown_path(path)}="..."'"""
            )
        yield from _traps(value, path=path, line=False)


def _traps(text: str, *, path: tuple[str, ...], line: bool) -> Iterator[str]:
    loader = get_yaml_loader()  # the one that reads it: it takes 1e5 for a number, YAML 1.1 not
    try:
        root = yaml.compose(text, Loader=loader)
    except (yaml.YAMLError, RecursionError):
        return  # whoever reads it says so
    if line and isinstance(root, yaml.MappingNode):
        yield from _lists_of_sections(root)
    for parts, node, is_key in _scalars(root, path, set()):
        where = shown_path(parts)
        if line:
            where += f" (line {node.start_mark.line + 1})"
        if _ENVIRONMENT.search(node.value):
            yield f"{where}: {ENVIRONMENT}"
        elif node.tag in (_INT, _FLOAT) and (problem := _number_trap(node.value)):
            yield f"{where}: {problem}"
        elif is_key and node.tag in _OTHER_THAN_TEXT:
            yield from _key_trap(where, node)


def _lists_of_sections(root: yaml.MappingNode) -> Iterator[str]:
    """Sections that are a list, which no library can merge with one of keys."""
    for key, node in root.value:
        if key.value in Config.model_fields and isinstance(node, yaml.SequenceNode):
            yield (
                f"{shown_path((str(key.value),))} (line {node.start_mark.line + 1}): a list is no"
                " section; write its keys below it, each as `key: value`"
            )


def _comment(value: str) -> str:
    """What YAML takes for a comment in a value: what stands between its tokens and is no blank."""
    end, between = 0, ""
    try:
        for token in yaml.scan(value, Loader=get_yaml_loader()):
            between += value[end : token.start_mark.index]
            end = max(end, token.end_mark.index)
    except (yaml.YAMLError, RecursionError):
        return ""  # whoever reads it says so
    return (between + value[end:]).strip()


def _number_trap(text: str) -> str:
    """What is wrong with a number, whether or not it is in quotes behind a `!!int`."""
    if ":" in text:
        how = "YAML 1.1 counts parts between colons in sixties"
    elif _OCTAL.fullmatch(text):
        how = "YAML 1.1 takes a leading zero for octal"
    else:
        return _underflow(text)
    return (
        f"{text} would be read as {yaml.safe_load(text)} ({how}); write the number"
        f" that is meant, or '{text}' in quotes if it is text"
    )


def _underflow(text: str) -> str:
    """Refuses what is not zero as written and would be zero as read."""
    try:
        vanishes = float(text.replace("_", "")) == 0
    except ValueError:
        return ""  # 0x10, .inf; or no number, and whoever reads it says so
    mantissa = re.split("[eE]", text)[0]
    if not vanishes or not re.search("[1-9]", mantissa):
        return ""
    return f"{text} would be read as 0, it is too small for a number; write 0 if that is meant"


def _key_trap(where: str, node: yaml.ScalarNode) -> Iterator[str]:
    """A mapping's names are text; `1_000: 5` would get the name 1000, and `yes: 5` the name
    true."""
    try:
        value = yaml.load(f"[{node.value or '~'}]", Loader=get_yaml_loader())[0]
        read = json.loads(json.dumps({value: 0}, allow_nan=False)).popitem()[0]
    except ValueError:
        read = "infinity or NaN"
    except (yaml.YAMLError, TypeError):
        return
    if read != node.value:
        yield (
            f"{where}: as a name, {node.value or 'nothing'} would be read as {read!r};"
            f" put it in quotes: '{node.value}'"
        )


def _scalars(
    node: yaml.Node | None, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], yaml.ScalarNode, bool]]:
    """Every scalar with its path, and whether it is a mapping's name; what an alias repeats comes
    once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield path, node, False
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item, path, seen)
    elif isinstance(node, yaml.MappingNode):
        for name, item in node.value:
            is_name = isinstance(name, yaml.ScalarNode)
            below = (*path, str(name.value) if is_name else "?")
            if is_name:
                yield below, name, True
            yield from _scalars(item, below, seen)
