"""What unit tests share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def logs_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """`setup_logging`, which tests of commands call, keeps them from the root logger for good."""
    monkeypatch.setattr(logging.getLogger("herl_megatron"), "propagate", True)
