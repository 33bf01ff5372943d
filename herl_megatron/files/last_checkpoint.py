"""What is left of a run that has no policy to give: its last checkpoint, in words.

Free of torch and Ray: the process that outlives a killed driver says it too (`cluster.orphans`).
"""

from __future__ import annotations

import shlex
from pathlib import Path

from herl_megatron.files.run_files import checkpoint_folders


def last_checkpoint(run: Path) -> str:
    """The newest published checkpoint of the run's folder, its step, and how a policy comes of
    it."""
    saved = checkpoint_folders(run)
    if not saved:
        return "no checkpoint was saved"
    step = int(saved[0].name.removeprefix("step_"))
    source, out = (shlex.quote(str(path)) for path in (saved[0], run / f"policy_{saved[0].name}"))
    return (
        f"the last checkpoint is of step {step}, {saved[0]}; a policy comes of it by:"
        f" herl convert to-hf --megatron {source} --out {out}"
    )
