"""The source of modules with checks of a user's own: verdicts change with it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def source_hash(module: str, file: str) -> str:
    """Short hash of a module's source and of what it imports from beside it; of a module in a
    package that of all the package's files, data included.

    What it imports from elsewhere (an installed library) is not covered.

    file: where the module is (`registry.module_file`), "" for one without a source.
    """
    if not file:
        return "no source"
    top = _top(module, Path(file))
    digest = hashlib.sha256()
    for one in sorted(_files(top)):
        for part in (str(one.relative_to(top.parent)).encode(), one.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:8]


def _top(module: str, file: Path) -> Path:
    """The file of a top-level module, or that of the package around it all."""
    inside = module.count(".")
    if file.name == "__init__.py":
        return file.parents[inside] / "__init__.py"
    return file.parents[inside - 1] / "__init__.py" if inside else file


def _files(file: Path) -> set[Path]:
    """A module's file, or a package's files, and those of the modules beside it that it imports."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.add(one)
        if one.name == "__init__.py":
            found |= {p for p in one.parent.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        elif one.suffix == ".py":
            todo += _beside(one)
    return found


def _beside(file: Path) -> Iterator[Path]:
    for name in _imported(file):
        for candidate in (file.parent / f"{name}.py", file.parent / name / "__init__.py"):
            if candidate.is_file() and not _is_elsewhere(name, candidate):
                yield candidate


def _is_elsewhere(name: str, candidate: Path) -> bool:
    """Whether an import finds another module of that name first: a user's folder comes last."""
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ImportError):
        return False
    if spec is None or not spec.origin:
        return False
    return not (Path(spec.origin).exists() and candidate.samefile(spec.origin))


def _imported(file: Path) -> set[str]:
    """Top-level names that a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
