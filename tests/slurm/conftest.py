"""The toy task of the end-to-end tests, for jobs too; one Slurm for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import fork_server, forked_herl, small, toy
from tests.slurm.cluster import Slurm, two_node_slurm

__all__ = ["fork_server", "forked_herl", "slurm", "small", "toy"]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    with two_node_slurm() as cluster:
        yield cluster
