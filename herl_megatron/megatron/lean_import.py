"""Import Megatron-Core without what a rank never uses. Must be imported before megatron.core.

Importing this module has effects on the process, on purpose. Where compilation is switched off
(`TORCH_COMPILE_DISABLE`, which ranks on CPU have) Megatron's decorators would import the whole
compiler to return their function unchanged; its inference code would import wandb. Together that
is two fifths of the CPU time in which a rank starts.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

gc.disable()  # the imports make many objects that live for ever: half a second of collections
import torch  # noqa: E402


def _unchanged(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """`torch.compile` where it is switched off, as decorator with and without arguments."""
    return function if function is not None else _unchanged


if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
    torch.compile = _unchanged  # type: ignore[assignment]

_absent = "wandb" not in sys.modules
if _absent:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # reads as "not installed"
import megatron.core.models.gpt.gpt_model  # noqa: E402
import megatron.core.optimizer  # noqa: E402, F401

if _absent:
    del sys.modules["wandb"]
gc.enable()
gc.freeze()
