"""Changes of single keys in the text of a YAML file; every other character stays as it is.

A text is composed into nodes that know where they stand, and edited there. What cannot be done so
is a `CannotEdit`, never a guess; `config.migrate` compares what the result says besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf._yaml import get_yaml_loader

_STEP = 2
"""Columns by which the keys of a section that is added are indented."""


class CannotEdit(ValueError):
    """The text has to be changed by hand; says why."""


def read(text: str) -> Any:
    """The values of a text, references between them as they are written."""
    return yaml.load(text, Loader=get_yaml_loader())


def set_value(text: str, path: str, value: Any) -> str:
    """Give the key a value; it must have a scalar one."""
    _, key, node = _entry(text, path)
    odd = _is_shared(text, key, node) or not isinstance(node, yaml.ScalarNode)
    if odd or node.style in ("|", ">"):
        raise CannotEdit(f"the value of {path} is no plain one of one line")
    return _spliced(text, node.start_mark.index, node.end_mark.index, as_yaml(value))


def rename(text: str, path: str, name: str) -> str:
    """Call the key of dotted `path` `name`, in its place."""
    key = _entry(text, path)[1]
    return _spliced(text, key.start_mark.index, key.end_mark.index, name)


def move(text: str, path: str, new_path: str) -> str:
    """The key under another section, with the comments above it and on its line; a section in
    braces cannot take those, then they stay where they were."""
    section, key, value = _entry(text, path)
    start, end = key.start_mark.index, _end(value, text)
    if _is_shared(text, key, value) or "\n" in text[start:end]:
        raise CannotEdit(f"{path} has a value of several lines, or one that others refer to")
    written = text[value.start_mark.index : end]
    note, above, newline = "", "", "\r\n" if "\r\n" in text else "\n"
    if section.flow_style:
        text = _without_flow_entry(text, section, start)
    else:
        line_end = _line_end(text, end)
        note = text[end:line_end].rstrip("\r")
        first = _comments_above(text, _line_start(text, start), key.start_mark.column)
        above = text[first : _line_start(text, start)]
        if text[_line_start(text, start) : start].strip() or key.start_mark.column == 0:
            raise CannotEdit(f"{path} does not begin its line")
        alone = len(section.value) == 1
        stays = ""
        if _is_flow(text, new_path):  # a comment between braces would end in front of the rest
            stays = above + (" " * key.start_mark.column + note.strip() + newline) * bool(note)
            note = above = ""
        text = text[:first] + stays + text[line_end + 1 :]
        if alone:
            parent = _entry_at_column(text, path)
            text = _spliced(text, parent, parent, " {}")
    return insert(text, new_path, written, note=note, above=above)


def insert(text: str, path: str, written: str, *, note: str = "", above: str = "") -> str:
    """Add a key that is not there, with its value as it is written in YAML, behind the last one of
    its section, which is added where it is missing.

    note: a comment behind the value; above: lines of comments before it; a section in braces takes
        neither.
    """
    section_name, _, name = path.rpartition(".")
    root = _root(text)
    if not section_name:
        return _insert_first(text, root, f"{name}: {written}")
    section = _find(root, section_name)
    newline = "\r\n" if "\r\n" in text else "\n"
    entry = f"{name}: {written}"
    if section is None:
        if root.flow_style:
            return _insert_flow(text, root, f"{section_name}: {{{entry}}}")
        lines = [f"{section_name}:", *_indented(above, _STEP), " " * _STEP + entry + note]
        return _insert_lines(text, root, lines, newline)
    if not isinstance(section, yaml.MappingNode):
        raise CannotEdit(f"{section_name} is no section of keys")
    if section.flow_style:
        return _insert_flow(text, section, entry)
    column = section.value[0][0].start_mark.column
    lines = [*_indented(above, column), " " * column + entry + note]
    return _insert_lines(text, section, lines, newline)


def replace_in_values(text: str, pattern: re.Pattern[str], new: str) -> str:
    """Replace what matches in every scalar that is a value."""
    while True:
        for node in _scalars(_root(text), set()):
            start, end = node.start_mark.index, node.end_mark.index
            if (changed := pattern.sub(new, text[start:end])) != text[start:end]:
                text = _spliced(text, start, end, changed)
                break
        else:
            return text


def _root(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=get_yaml_loader())
    if not isinstance(root, yaml.MappingNode):
        raise CannotEdit("the file holds no sections")
    return root


def _find(node: yaml.Node | None, path: str) -> yaml.Node | None:
    for part in path.split("."):
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == part), None)
    return node


def _entry(text: str, path: str) -> tuple[yaml.MappingNode, yaml.Node, yaml.Node]:
    """The section that holds the key, the key and its value."""
    root = _root(text)
    section_name, _, name = path.rpartition(".")
    section = _find(root, section_name) if section_name else root
    for key, value in section.value if isinstance(section, yaml.MappingNode) else ():
        if key.value == name:
            assert isinstance(section, yaml.MappingNode)
            return section, key, value
    raise CannotEdit(f"{path} is not written out in this file")  # a merge key `<<`


def _entry_at_column(text: str, path: str) -> int:
    """Where the colon of the section that held `path` ends."""
    key = _entry(text, path.rpartition(".")[0])[1]
    return text.index(":", key.end_mark.index) + 1


def _end(node: yaml.Node, text: str) -> int:
    """Where what a node says ends; PyYAML's mark of a block is behind the comments after it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _entry_end(last, text) if isinstance(last, tuple) else _end(last, text)
    end = node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return len(text[:end].rstrip())
    return int(end)


def _entry_end(entry: tuple[yaml.Node, yaml.Node], text: str) -> int:
    key, value = entry
    if not _is_alias(key, value):
        return _end(value, text)
    found = re.compile(r"\s*:\s*\*[^\s,\]}]+").match(text, key.end_mark.index)
    assert found is not None, "an alias is written as *NAME"
    return found.end()


def _is_flow(text: str, path: str) -> bool:
    """Whether the section that `path` is to go to is, or would be, in braces."""
    root = _root(text)
    section = _find(root, path.rpartition(".")[0]) or root
    return isinstance(section, yaml.MappingNode) and bool(section.flow_style)


def _is_shared(text: str, key: yaml.Node, value: yaml.Node) -> bool:
    """Whether a value has an anchor, or is an alias: a node that stands elsewhere."""
    return _is_alias(key, value) or text[value.start_mark.index] == "&"


def _is_alias(key: yaml.Node, value: yaml.Node) -> bool:
    return bool(value.start_mark.index < key.end_mark.index)


def _spliced(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    """Index of the line's last character, its newline, or the text's length."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found


def _comments_above(text: str, start: int, column: int) -> int:
    """Where the comment lines begin that stand right above a line and as far in as its key."""
    while start > 0:
        before = _line_start(text, start - 1)
        line = text[before:start]
        if not line.startswith(" " * column + "#"):
            break
        start = before
    return start


def _indented(lines: str, column: int) -> list[str]:
    return [" " * column + line.strip() for line in lines.splitlines()]


def _without_flow_entry(text: str, section: yaml.MappingNode, start: int) -> str:
    """Without the entry that begins at `start`, and one of the commas beside it."""
    starts = [key.start_mark.index for key, _ in section.value]
    number = starts.index(start)
    if number + 1 < len(starts):
        begin, end = start, starts[number + 1]
    elif number:
        begin, end = (
            _entry_end(section.value[number - 1], text),
            _entry_end(section.value[number], text),
        )
    else:
        begin, end = start, _entry_end(section.value[0], text)
    if "#" in text[begin:end]:
        raise CannotEdit("a comment stands between braces")
    return text[:begin] + text[end:]


def _insert_first(text: str, root: yaml.MappingNode, entry: str) -> str:
    if not root.value:
        raise CannotEdit("the file holds no keys")
    start = root.value[0][0].start_mark.index
    if root.flow_style:
        return _spliced(text, start, start, f"{entry}, ")
    newline = "\r\n" if "\r\n" in text else "\n"
    return _spliced(text, start, start, entry + newline)


def _insert_flow(text: str, section: yaml.MappingNode, entry: str) -> str:
    if section.value:
        end = _entry_end(section.value[-1], text)
        return _spliced(text, end, end, f", {entry}")
    start = section.start_mark.index + 1
    return _spliced(text, start, start, entry)


def _insert_lines(text: str, section: yaml.MappingNode, lines: list[str], newline: str) -> str:
    """Behind the last line of a section in block style."""
    end = _line_end(text, _entry_end(section.value[-1], text))
    before = "" if end < len(text) else newline
    added = before + newline.join(lines) + ("" if before else newline)
    at = min(end + 1, len(text))
    return _spliced(text, at, at, added)


def as_yaml(value: Any) -> str:
    """A value as it is written on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return str(text).removesuffix("...\n").strip()


def _scalars(node: yaml.Node, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from _scalars(item[1] if isinstance(item, tuple) else item, seen)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted path; a section that is empty has none."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
