"""Every link of the documentation leads somewhere, and every file that it names exists."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from tests.pages import PACKAGE, PAGES, ROOT, prose, read

WRITTEN = re.compile(
    r"(runs|checkpoints|rollouts|policy|tensorboard|report|build|data|additional_chat_templates)/"
    r"|(ifeval|ifbench|muldimif|text)/"
    r"|(config|my_gpus)\.yaml|my_\w+\.py"
)
"""What runs, commands and the reader write, and checks by their families: not in the repository."""


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    kept = (c for c in text if c in "-_ " or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def anchors(page: Path) -> list[str]:
    return [slug(text) for text in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)]


def names(page: Path) -> set[str]:
    """Files and folders that the prose names in backticks."""
    words = re.findall(r"`([\w/.*-]+)`", prose(page))
    ends = ("/", ".py", ".sh", ".md", ".yaml", ".sbatch", ".ipynb")
    return {word for word in words if word.endswith(ends) and not word.startswith((".", "/"))}


def problems(page: Path) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            found.append(f"{target}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert problems(page) == []
    assert len(set(anchors(page))) == len(anchors(page)), "two headings share an anchor"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    missing = []
    for name in names(page):
        if WRITTEN.match(name):
            continue
        short = name.rstrip("/")
        bases = (ROOT, PACKAGE, ROOT / "configs", page.parent)
        if not any(next(base.glob(one), None) for base in bases for one in (short, f"*/{short}")):
            missing.append(name)
    assert missing == []


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `key`, and: two\n[a](#one-key-and-two) [b](#none) [c](none.md) `no/x.py`"
    )
    assert problems(page) == ["#none: no such heading", "none.md: no such file"]
    assert names(page) == {"no/x.py"}


def test_every_page_is_reached_from_the_first_ones() -> None:
    seen, new = set[Path](), [ROOT / "README.md"]
    while new:
        page = new.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", prose(page))
        new += [(page.parent / one).resolve() for one in links if "://" not in one]
    assert {page.name for page in PAGES if page not in seen} == set()


def test_nothing_cites_a_document_that_is_not_here() -> None:
    """The repository stands by itself."""
    cited = re.compile(
        r"\bdesign section\b|\bsection \d+ of the design\b|DESIGN\.md", re.IGNORECASE
    )
    suffixes = {".py", ".md", ".yaml", ".yml", ".sh", ".sbatch", ".toml"}
    folders = ("herl_megatron", "configs", "docs", "slurm", "tests", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found = [
        str(path.relative_to(ROOT))
        for path in (*files, *PAGES)
        if path.suffix in suffixes and path != Path(__file__) and cited.search(read(path))
    ]
    assert found == []


def test_the_site_has_every_page() -> None:
    listed = set(re.findall(r'"(\w+)"', read(ROOT / "tools/site/conf.py").partition("CHAPTERS")[2]))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"README"} <= listed
