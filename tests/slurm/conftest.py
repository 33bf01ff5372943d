"""The toy task of the end-to-end tests, for jobs too."""

from __future__ import annotations

from tests.e2e.conftest import herl, small, toy

__all__ = ["herl", "small", "toy"]
