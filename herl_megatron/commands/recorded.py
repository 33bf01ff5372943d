"""A training run's parts, with what its folder keeps of where they are and what they need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from herl_megatron.config.schema import Config
from herl_megatron.plan.record import plan_beside
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.inputs import Inputs
from herl_megatron.run.parts import TrainParts, open_train_parts


@asynccontextmanager
async def open_recorded(
    config: Config, inputs: Inputs, folder: RunFolder
) -> AsyncIterator[TrainParts]:
    """`open_train_parts`; the folder gets the nodes and, on GPUs, the plan of the run."""
    async with open_train_parts(config, inputs) as parts:
        folder.saw_nodes(parts.nodes)
        device, per_node = parts.trainer.device, parts.gpus_per_node
        with plan_beside(folder.path, config.cluster, device=device, per_node=per_node):
            yield parts
