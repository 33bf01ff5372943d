"""`herl inspect` for those who look for it here; see `herl inspect --help`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from herl_megatron.commands.inspect import main

if __name__ == "__main__":
    sys.exit(main())
