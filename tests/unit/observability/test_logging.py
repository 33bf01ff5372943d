"""Who says what: rank 0 everything, other ranks warnings, once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from herl_megatron.observability.logging import setup_logging


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    logger = logging.getLogger("herl_megatron")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize(("rank", "expected"), [(0, ["step", "careful"]), (3, ["careful"])])
def test_ranks(capsys: pytest.CaptureFixture[str], rank: int, expected: list[str]) -> None:
    setup_logging(rank=rank)
    setup_logging(rank=rank)  # a second call must not double the lines
    logger = logging.getLogger("herl_megatron.commands.train")
    logger.info("step")
    logger.warning("careful")
    assert [line.split(": ")[-1] for line in capsys.readouterr().err.splitlines()] == expected


def test_level_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERL_LOG_LEVEL", "debug")
    setup_logging()
    logging.getLogger("herl_megatron.commands.train").debug("detail")
    assert "detail" in capsys.readouterr().err
    monkeypatch.setenv("HERL_LOG_LEVEL", "loud")
    with pytest.raises(ValueError, match="'LOUD'"):
        setup_logging()
