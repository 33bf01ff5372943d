"""HeRL on Megatron-Core: hindsight-guided reinforcement learning from rubric rewards.

From Python: `prepare(files, overrides)` gives the configuration that `train`, `sft`, `dpo`,
`evaluate`, `improve` and `score` take (`herl_megatron.api`). Importing the package imports none of
what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herl_megatron.api import (
        PreparedConfig,
        dpo,
        evaluate,
        improve,
        prepare,
        score,
        sft,
        train,
    )

__version__ = "0.1.0"
__all__ = ["PreparedConfig", "dpo", "evaluate", "improve", "prepare", "score", "sft", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from herl_megatron import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
