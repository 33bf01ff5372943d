"""How long a test waits for something that takes seconds before it calls it a hang."""

from __future__ import annotations

HANG_S = 600.0
"""Two halves of the suite on two slow cores take what is waited for five to ten times as long as
alone; a limit near the usual time fails for the machine's mood and never finds a hang sooner."""
