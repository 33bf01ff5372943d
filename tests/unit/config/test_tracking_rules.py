"""What a tracker needs is missed before a run starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.rules.tracking import start_problems
from herl_megatron.config.schema import TrackingConfig


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither in the environment nor at home; returns the netrc file that is looked at."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def find(name: str) -> Any:
        return object() if name in names else None

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_nothing_is_asked_for_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert list(start_problems(TrackingConfig())) == []


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    wandb, mlflow = start_problems(TrackingConfig(wandb="offline", mlflow="http://host:5000"))
    assert "pip install wandb" in wandb and "tracking.wandb is 'offline'" in wandb
    assert "pip install mlflow-skinny" in mlflow and "'http://host:5000'" in mlflow


def test_credentials_are_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "mlflow")
    (said,) = start_problems(TrackingConfig(mlflow="https://me:hunter2@host/x"))
    assert "MLFLOW_TRACKING_PASSWORD" in said and "hunter2" not in said and "me:" not in said


def test_online_wants_a_key(monkeypatch: pytest.MonkeyPatch, no_key: Path) -> None:
    installed(monkeypatch, "wandb")
    online = TrackingConfig(wandb="online")
    (said,) = start_problems(online)
    assert "WANDB_API_KEY" in said and "'offline'" in said
    assert list(start_problems(TrackingConfig(wandb="offline"))) == []
    no_key.write_text("machine other.example login user password x\n")
    assert len(list(start_problems(online))) == 1
    no_key.write_text("machine api.wandb.ai login user password x\n")
    assert list(start_problems(online)) == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    assert len(list(start_problems(online))) == 1
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert list(start_problems(online)) == []
