"""Environment of the engine tests, set before any of them imports torch or vllm."""

from __future__ import annotations

import os

from herl_megatron.rollout.vllm.engine_environment import engine_environment

os.environ.update(engine_environment(device="cpu", threads=1))
