"""What the trainer is told: of a configuration, the sections that the command's trainer reads.

The values go to every rank's process. SFT and DPO have no policy to compare with, so what concerns
one, a reference model too, is not there for them, whatever the configuration holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    ClusterConfig,
    Config,
    HindsightConfig,
    MegatronConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
    WeightSyncConfig,
)


@dataclass(frozen=True)
class PolicySections:
    """What only `herl train` has: how the policy samples, and what it learns by.

    folder: where herl was started; a user's own modules may lie there (`config.hooks`).
    """

    algorithm: AlgorithmConfig
    hindsight: HindsightConfig
    rollout: RolloutConfig
    train: TrainConfig
    folder: str


@dataclass(frozen=True)
class TrainerSections:
    """Model, optimizer and layout; seed: `run.seed`.

    Weight sync and checkpoints have sizes and time limits here; who never calls for them depends on
    none.
    """

    seed: int
    model: ModelConfig
    optimizer: OptimizerConfig
    megatron: MegatronConfig
    weight_sync: WeightSyncConfig
    checkpoint: CheckpointConfig
    cluster: ClusterConfig
    policy: PolicySections | None = None


def trainer_sections(config: Config, *, purpose: Purpose) -> TrainerSections:
    """The sections for `herl PURPOSE`."""
    policy = None
    if purpose == "train":
        policy = PolicySections(
            config.algorithm, config.hindsight, config.rollout, config.train, folder=os.getcwd()
        )
    return TrainerSections(
        seed=config.run.seed,
        model=config.model,
        optimizer=config.optimizer,
        megatron=config.megatron,
        weight_sync=config.weight_sync,
        checkpoint=config.checkpoint,
        cluster=config.cluster,
        policy=policy,
    )
