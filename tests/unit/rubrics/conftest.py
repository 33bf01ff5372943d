"""NLTK's data comes with the reference verdicts (`HERL_DATA_DIR/nltk_data`)."""

from __future__ import annotations

import os
from pathlib import Path

# Before NLTK is imported, which reads NLTK_DATA once.
if os.environ.get("HERL_DATA_DIR"):
    os.environ.setdefault("NLTK_DATA", str(Path(os.environ["HERL_DATA_DIR"]) / "nltk_data"))
