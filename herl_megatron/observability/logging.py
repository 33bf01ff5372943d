"""Logging of one process: rank 0 speaks to the console, other ranks only of warnings."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rich import get_console
from rich.logging import RichHandler

_ROOT = "herl_megatron"
_PLAIN = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def setup_logging(*, rank: int = 0) -> None:
    """Send this process's `herl_megatron` log to the console; call once per process.

    A terminal gets short coloured lines above the progress bars; a file or a pipe gets full lines
    with the process id. `HERL_LOG_LEVEL` (DEBUG, INFO, ...) overrides the level.

    Raises:
        ValueError: `HERL_LOG_LEVEL` is no level.
    """
    default = "INFO" if rank == 0 else "WARNING"
    level = os.environ.get("HERL_LOG_LEVEL", default).upper()
    if level not in logging.getLevelNamesMapping():
        raise ValueError(f"HERL_LOG_LEVEL is {level!r}, use DEBUG, INFO, WARNING or ERROR")
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_console_handler())


def add_log_file(path: Path) -> logging.Handler:
    """Also write this process's log to `path`; hand the result to `remove_handler` at the end."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_PLAIN))
    logging.getLogger(_ROOT).addHandler(handler)
    return handler


def remove_handler(handler: logging.Handler) -> None:
    """Stop and close a handler that `add_log_file` made."""
    logging.getLogger(_ROOT).removeHandler(handler)
    handler.close()


def _console_handler() -> logging.Handler:
    console = get_console()
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, markup=False, log_time_format="%X")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_PLAIN))
    return handler
