"""What the makers of rows for SFT and DPO share: the file that they write, and what they say."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.commands.score.output import write_whole
from herl_megatron.files.os_errors import explain

_INTERRUPTED = 130
WhatBecame = Counter[str]
"""What became of everything that was read, in a few words; `rows` were written."""


def run_maker(
    prog: str,
    out: Path,
    make: Callable[[], tuple[Sequence[dict[str, Any]], WhatBecame]],
    *,
    overwrite: bool,
    nothing: str,
) -> int:
    """Write what `make` returns into `out`, whole or not at all, and print the counts.

    nothing: what is said where there is no row. Returns an exit code: 0 written, 1 the judge stayed
    away, 2 something has to be mended, 130 interrupted.
    """
    try:
        if os.path.lexists(out) and not (overwrite and out.is_file()):
            raise ValueError(
                f"--out {out} is there already; name another file, or replace it with --overwrite"
            )
        rows, counts = make()
        if not rows:
            found = "; ".join(f"{name}: {count}" for name, count in counts.most_common() if count)
            raise ValueError(f"{nothing} ({found}); nothing was written")
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, "".join(lines).encode())
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: {explain(error, elsewhere='name another --out')}\n")
        return 2
    except RuntimeError as error:  # JudgeError
        sys.stderr.write(f"stopped: {error}; the same command goes on where it was\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write(f"interrupted: `{prog}` with the same arguments goes on where it was\n")
        return _INTERRUPTED
    for name, count in counts.most_common():
        if count:
            sys.stdout.write(f"{count:8d}  {name}\n")
    sys.stdout.write(f"{out}\n")
    return 0


def finite(name: str, value: float | None) -> None:
    """Raise ValueError for an option that is no number to compare rewards with."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; give a number")
