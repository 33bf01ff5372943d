"""A cache of Hugging Face as a download leaves it, made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have huggingface_hub keep its cache in `folder`."""
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def fill_cache(cache: Path, name: str, *, model: Path | None = None, commit: str = COMMIT) -> Path:
    """The snapshot's folder, with the files of `model`; by default two that are empty."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    if model is not None:
        shutil.copytree(model, snapshot)
        return snapshot
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").touch()
    return snapshot
