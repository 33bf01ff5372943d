"""How large and how well documented the package's files and functions are, beside the limits.

    python tools/measure_house.py            a table; exit 1 if a limit is broken

Counted over herl_megatron/ (no tools, no tests). A function's lines go from `def` to its end;
complexity is McCabe's number (1976) with the operands of `and` and `or` and the conditions of
comprehensions counted as decisions; parameters leave `self` and `cls` out. Public is every module,
and what stands at the top of a file under a name without `_`. `tests/test_layering.py` keeps the
same limits, and the order of the rooms.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "herl_megatron"
Function = ast.FunctionDef | ast.AsyncFunctionDef
_DECISIONS = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert,
    ast.match_case, ast.comprehension,
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One number, its limit, and where the worst is."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    """Whether the limit is a smallest value."""
    worst: str = ""

    @property
    def kept(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def measures(package: Path = PACKAGE) -> list[Measure]:
    """All measures of a package's folder."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    files = {str(path.relative_to(package)): _line_count(path) for path in trees}
    lines, branches, parameters, typed = {}, {}, {}, {}
    for path, tree in trees.items():
        for function in functions(tree):
            where = f"{path.relative_to(package)}:{function.lineno} {function.name}"
            lines[where] = (function.end_lineno or function.lineno) - function.lineno + 1
            branches[where] = complexity(function)
            parameters[where] = len(arguments(function))
            typed[where] = sum(one.annotation is not None for one in arguments(function))
    public = [node for tree in trees.values() for node in _public(tree)]
    documented = sum(ast.get_docstring(node) is not None for node in public)
    all_typed = 100 * sum(typed.values()) / sum(parameters.values())
    return [
        Measure("lines of a file, 90 of 100", _percentile(files.values(), 0.9), 280),
        _largest("lines of a file, most", files, 500),
        Measure("lines of a function, 90 of 100", _percentile(lines.values(), 0.9), 23),
        _largest("lines of a function, most", lines, 80),
        _largest("complexity of a function, most", branches, 20),
        Measure("parameters, 90 of 100", _percentile(parameters.values(), 0.9), 3),
        _largest("parameters, most", parameters, 8),
        Measure("public docstrings, %", 100 * documented / len(public), 95, at_least=True),
        Measure("typed parameters, %", all_typed, 100, at_least=True),
    ]


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def complexity(function: Function) -> int:
    """1 and one for each decision; nested functions are their own."""
    total = 1
    nodes = list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, Function | ast.ClassDef):
            continue
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        elif isinstance(node, _DECISIONS):
            total += 1
        nodes.extend(ast.iter_child_nodes(node))
    return total


def arguments(function: Function) -> list[ast.arg]:
    """The parameters of a function; those of a method without `self` or `cls`."""
    given = function.args
    several = [one for one in (given.vararg, given.kwarg) if one is not None]
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *several]
    return named[1:] if named and named[0].arg in ("self", "cls") else named


def _public(
    tree: ast.Module,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    yield tree
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _percentile(values: Iterable[int], share: float) -> int:
    """The smallest value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def _largest(name: str, values: Mapping[str, int], limit: int) -> Measure:
    worst = max(values, key=lambda where: values[where])
    return Measure(name, values[worst], limit, worst=worst)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a limit is broken."""
    found = measures(Path(arguments[0])) if arguments else measures()
    for one in found:
        sign = ">=" if one.at_least else "<="
        broken = "" if one.kept else "   BROKEN"
        print(f"{one.name:<32}{one.value:>7.4g}  {sign} {one.limit:<5g}{broken}  {one.worst}")
    return 0 if all(one.kept for one in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
