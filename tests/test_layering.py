"""The house rules that a program can check: layers, sizes, docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

import herl_megatron
from tools.measure_house import Measure, measures

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "herl_megatron"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up; a room may import from floors below its own.
FLOORS = (
    ("types", "array_text", "engine", "errors", "fp8", "device", "gpus", "seeds", "blocking",
     "cpu_layout", "files"),
    ("config",),
    ("observability",),
    ("algos", "benchmarks", "rubrics", "hindsight", "data", "batching", "models"),
    ("weight_sync", "megatron", "rollout"),
    ("cluster", "improvement"),
    ("run",),
    ("plan", "report"),
    ("reproduce",),
    ("prepared",),
    ("commands",),
    ("api",),
    ("cli",),
)  # fmt: skip
# Rooms of one floor know nothing of each other but for these.
NEIGHBOURS = {
    "device": {"fp8", "types"},
    "types": {"array_text"},
    "engine": {"types"},
    "gpus": {"files"},
    "hindsight": {"rubrics"},
    "data": {"rubrics", "hindsight"},
    "batching": {"algos", "hindsight", "rubrics"},
    "models": {"data"},
    "rollout": {"weight_sync"},
}
MOST_LINES = 500
"""Of a file, tools and tests too."""
BACKENDS = ("megatron", "transformer_engine", "vllm", "ray")
# Which files may import a library; a trailing slash means a folder.
ONLY_IN = {
    "megatron.core": ("megatron/",),
    "transformer_engine": ("megatron/",),
    "vllm": ("rollout/vllm/",),
    "ray": ("cluster/", "rubrics/pool.py", "rubrics/worker.py"),
}


def module_name(path: Path) -> str:
    """Dotted name below the package, `` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """What of FLOORS a dotted module below the package is in."""
    return module.partition(".")[0]


def floor(name: str) -> int:
    """Number of the floor that a room is on, from the ground up."""
    found = [number for number, rooms in enumerate(FLOORS) if name in rooms]
    assert found, f"{name} is on no floor: add it to FLOORS, after reading docs/architecture.md"
    return found[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module (`from a import b` gives `a` and `a.b`) with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def starts_with(name: str, prefix: str) -> bool:
    """Whether the dotted `name` is `prefix` or lies below it."""
    return name == prefix or name.startswith(f"{prefix}.")


def known_modules() -> set[str]:
    return {module_name(path) for path in FILES} - {""}


def parsed() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def arrows() -> Iterator[tuple[str, str, str]]:
    """Every import of one module of the package by another, with its place.

    `from herl_megatron.a import b` is one of `a.b` alone where `b` is a module.
    """
    modules = known_modules()
    for path, tree in parsed():
        own = module_name(path)
        ours = {pair for pair in imports(tree) if pair[0].startswith("herl_megatron.")}
        named = {(name.removeprefix("herl_megatron."), line) for name, line in ours}
        found = {(target, line) for target, line in named if target in modules}
        for target, line in sorted(found if own else ()):
            if not any(other.startswith(f"{target}.") and at == line for other, at in found):
                yield own, target, f"{path.relative_to(PACKAGE)}:{line} imports {target}"


def test_imports_go_downward_only() -> None:
    wrong, used = [], set()
    for own, target, where in arrows():
        here, there = room(own), room(target)
        if here == there or floor(there) < floor(here):
            continue
        if there in NEIGHBOURS.get(here, ()):
            used.add((here, there))
        else:
            wrong.append(where)
    assert wrong == []
    listed = {(here, there) for here, rooms in NEIGHBOURS.items() for there in rooms}
    assert used == listed, "listed and no longer needed"


def test_no_import_comes_back_to_where_it_started() -> None:
    """No circle between files, whatever imports them late."""
    after: dict[str, set[str]] = {}
    for own, target, _ in arrows():
        after.setdefault(own, set()).add(target)
    done: set[str] = set()
    for start in sorted(after):
        assert (found := circle(start, after, done, ())) is None, " -> ".join(found)


def circle(
    module: str, after: Mapping[str, Set[str]], done: set[str], way: tuple[str, ...]
) -> tuple[str, ...] | None:
    """The modules on a way that leads back, if one goes out from `module`."""
    if module in way:
        return (*way[way.index(module) :], module)
    if module in done:
        return None
    for following in sorted(after.get(module, ())):
        if found := circle(following, after, done, (*way, module)):
            return found
    done.add(module)
    return None


def test_package_needs_no_tools_and_no_tests() -> None:
    wrong = [
        f"{path}:{line} {name}"
        for path, tree in parsed()
        for name, line in imports(tree)
        if starts_with(name, "tools") or starts_with(name, "tests")
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_backend_is_imported_in_its_own_place_only(library: str) -> None:
    allowed = ONLY_IN[library]
    wrong = [
        f"{path}:{line}"
        for path, tree in parsed()
        for name, line in imports(tree)
        if starts_with(name, library) and not str(path.relative_to(PACKAGE)).startswith(allowed)
    ]
    assert wrong == []


def test_only_device_decides_about_cuda() -> None:
    """`torch.cuda` outside of device.py; megatron/cpu.py replaces it where Megatron insists."""
    wrong = []
    for path, tree in parsed():
        if path in (PACKAGE / "device.py", PACKAGE / "megatron" / "cpu.py"):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "cuda"
                and isinstance(node.value, ast.Name)
                and node.value.id == "torch"
            ):
                wrong.append(f"{path}:{node.lineno}")
    assert wrong == []


def test_pure_layers_load_no_backend() -> None:
    """What a fresh process holds after importing all rooms below the machinery."""
    machinery = floor("megatron")
    may_load = tuple(
        name.removesuffix("/").removesuffix(".py").replace("/", ".")
        for places in ONLY_IN.values()
        for name in places
    )
    pure = [
        name
        for name in sorted(known_modules())
        if floor(room(name)) < machinery and not name.startswith(may_load)
    ]
    assert len(pure) > 20
    code = (
        "import importlib, sys\n"
        f"for name in {pure!r}: importlib.import_module('herl_megatron.' + name)\n"
        f"print([n for n in {BACKENDS!r} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("one", measures(), ids=lambda one: one.name)
def test_measures_of_the_house(one: Measure) -> None:
    """Lines, complexity, parameters, docstrings and types: `python tools/measure_house.py`."""
    assert one.kept, one


def test_how_the_house_is_measured(tmp_path: Path) -> None:
    """By hand: `f` has 4 lines, one parameter beside self, and 1 + if + and + comprehension + its
    condition = 5 ways; one of three docstrings is there, one of two parameters has a type."""
    (tmp_path / "a.py").write_text(
        '"""A module."""\nclass A:\n    def f(self, a):\n        if a and self:\n'
        "            return 1\n        return [b for b in a if b]\n"
        "def g(a: int): ...\n"
    )
    found = {one.name: one.value for one in measures(tmp_path)}
    assert found == {
        "lines of a file, 90 of 100": 7, "lines of a file, most": 7,
        "lines of a function, 90 of 100": 4, "lines of a function, most": 4,
        "complexity of a function, most": 5,
        "parameters, 90 of 100": 1, "parameters, most": 1,
        "public docstrings, %": pytest.approx(100 / 3), "typed parameters, %": 50,
    }  # fmt: skip


def test_tools_and_tests_are_of_files_that_can_be_read() -> None:
    wrong = [
        f"{path}: {lines} lines"
        for folder in ("tools", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]
    assert wrong == []


def test_a_sections_rules_are_in_the_file_of_its_name() -> None:
    """Who adds a key to `config/schema/X.py` finds its rules in `config/rules/X.py`; they count."""
    schema, rules = (
        {path.stem for path in (PACKAGE / "config" / name).glob("*.py")} - {"__init__", "base"}
        for name in ("schema", "rules")
    )
    assert schema == rules
    composed = ast.parse((PACKAGE / "config" / "validate.py").read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(composed) if isinstance(node, ast.Name)}
    assert rules <= used, f"validate.py does not ask {rules - used}"


def test_the_loop_fits_on_a_screen() -> None:
    assert len((PACKAGE / "commands" / "train.py").read_text(encoding="utf-8").splitlines()) <= 120


# Who may be given a whole `Config`; a trailing slash means a folder. All others take the sections
# (or values) that they use, so that what decides about a part is in its signature.
WHOLE_CONFIG = {
    "config/": "reads, checks and writes it",
    "commands/": "compose what a command runs",
    "cli.py": "hands it to the command",
    "data/epochs.py": "gives three sections the steps that their rows make",
    "prepared.py": "gives it to who asks for it from Python",
    "plan/": "plans a whole run",
    "report/": "reads what a run was started with",
    "reproduce/": "composes rows from files",
    "run/parts.py": "composes the parts of a run",
    "run/ground.py": "starts their processes",
    "run/tuning_parts.py": "composes the parts of a run that fits rows",
    "run/tuning_inputs.py": "reads what such a run evaluates on",
    "run/inputs.py": "reads all that a run reads",
    "run/checkpointer.py": "saves it with the checkpoint",
    "run/folder.py": "saves it with the run",
    "run/checkpoints.py": "compares it with the checkpoint's",
    "improvement/trajectory_log.py": "compares it with the earlier start's",
    "improvement/sampling.py": "composes a loop of its own, of six sections",
    "config/reference_compat.py": "resolves one section by another",
}


def test_parts_take_their_sections_and_not_the_whole_configuration() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path, tree in parsed()
        for name, _ in imports(tree)
        if name in ("herl_megatron.config.schema.Config", "herl_megatron.config.load.load_config")
    }
    allowed = {name for name in WHOLE_CONFIG for user in users if user.startswith(name)}
    assert {user for user in users if not user.startswith(tuple(WHOLE_CONFIG))} == set()
    assert allowed == set(WHOLE_CONFIG), "no longer needed"


def test_docstrings() -> None:
    """On every module, public class and public function that another file imports."""
    used = {name for _, tree in parsed() for name, _ in imports(tree)}
    wrong = []
    for path, tree in parsed():
        if not ast.get_docstring(tree):
            wrong.append(f"{path}: module")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            full_name = f"herl_megatron.{module_name(path)}.{node.name}"
            needs = isinstance(node, ast.ClassDef) or full_name in used
            if needs and not node.name.startswith("_") and not ast.get_docstring(node):
                wrong.append(f"{path}:{node.lineno}: {node.name}")
    assert wrong == []


def test_habits() -> None:
    """No print, global, star import, bare except, or getattr with a default on a configuration."""
    wrong = []
    for path, tree in parsed():
        for node in ast.walk(tree):
            where = f"{path}:{node.lineno}" if hasattr(node, "lineno") else str(path)
            if isinstance(node, ast.Global):
                wrong.append(f"{where}: global")
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                wrong.append(f"{where}: star import")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "print":
                    wrong.append(f"{where}: print")
                of_config = "config" in ast.unparse(node.args[0]) if node.args else False
                if node.func.id == "getattr" and len(node.args) == 3 and of_config:
                    wrong.append(f"{where}: getattr with a default on a configuration")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{where}: bare except")
        if not path.read_text(encoding="utf-8").isascii():
            wrong.append(f"{path}: not ASCII")
    assert wrong == []


def test_json_holds_no_nan() -> None:
    """JSON has no NaN and no infinity: who writes some says that there are none or, of a server's
    words that a message repeats, that there may be.

    Where input is hashed or handed on as it is, that is not ours to refuse.
    """
    handed_on = {"config/load.py", "data/fingerprints.py", "data/responses.py"}
    handed_on.add("models/hf_folder.py")  # a model's own config.json
    handed_on |= {"rubrics/error_replies.py", "rubrics/replies.py"}  # what a server said
    wrong = []
    for path, tree in parsed():
        if path.relative_to(PACKAGE).as_posix() in handed_on:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                if not any(keyword.arg == "allow_nan" for keyword in node.keywords):
                    wrong.append(f"{path}:{node.lineno}: json that does not say allow_nan")
    assert wrong == []


def test_a_name_means_one_thing() -> None:
    """No two files of the package and no two public classes share a name.

    But for files that are what their folder says of a section or a command: `config/schema/run.py`,
    `config/rules/run.py`, `commands/data.py`.
    """
    apart = ("__init__.py", "config/schema/", "config/rules/", "commands/")
    files: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for path, tree in parsed():
        where = path.relative_to(PACKAGE).as_posix()
        if not where.endswith("__init__.py") and not where.startswith(apart):
            files.setdefault(path.name, []).append(where)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(where)
    twice = {name: found for name, found in (files | classes).items() if len(found) > 1}
    assert twice == {}
    # `herl_megatron.improve` is a function; a room of that name would take its place.
    assert not set(herl_megatron.__all__) & {room for floor in FLOORS for room in floor}


# Whatever else one would put here has a folder below.
TOP_LEVEL = {
    "herl_megatron", "configs", "docs", "slurm", "tests", "tools", ".ci", ".github",
    "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "pyproject.toml",
    "setup.py", ".gitignore", ".pre-commit-config.yaml",
}  # fmt: skip


def test_the_top_level_holds_what_a_visitor_looks_for() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    assert {name.partition("/")[0] for name in listed.stdout.splitlines()} <= TOP_LEVEL
