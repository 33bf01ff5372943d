"""What a rank on CPU imports, and what it is spared."""

from __future__ import annotations

import os
import subprocess
import sys

_CODE = """
import gc, sys
import herl_megatron.megatron.parallel, herl_megatron.megatron.actor, torch
spared = ("torch._inductor.compile_fx", "torch._dynamo", "wandb", "openai", "matplotlib")
print([name for name in spared if name in sys.modules], gc.isenabled())
double = lambda x: 2 * x
print(torch.compile(double) is double, torch.compile(dynamic=True)(double) is double)
import wandb
"""


def test_a_cpu_rank_imports_neither_the_compiler_nor_wandb() -> None:
    """Both cost each rank seconds of a start; afterwards they can be imported as ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CODE], capture_output=True, text=True,
        env=os.environ | {"TORCH_COMPILE_DISABLE": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[] True", "True True"], done.stderr
    assert done.returncode == 0, done.stderr
