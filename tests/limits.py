"""How long a test waits before it calls it a hang, and how many inputs it makes up."""

from __future__ import annotations

import os

HANG_S = 600.0
"""Beside the rest of the suite on two slow cores, what is waited for takes five to ten times as
long as alone; a limit near the usual time fails for the machine's mood and never finds a hang
sooner."""

FULL = os.environ.get("HERL_TEST_FULL") == "1"
"""Set by `tools/test.sh --full`: generated inputs by the thousand, chains of whole commands."""
