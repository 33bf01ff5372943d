"""What a run can be told, one model per stage.

Every key, its type, default and meaning is here; `config.load` reads YAML into these models and
`config.rules` holds the rules that involve two keys. Unknown keys are refused.
"""

from __future__ import annotations

from herl_megatron.config.schema.algorithm import AlgorithmConfig, OptimizerConfig
from herl_megatron.config.schema.base import Precision, Section
from herl_megatron.config.schema.data import DataConfig, ModelConfig
from herl_megatron.config.schema.evaluation import EvalConfig, ImproveConfig
from herl_megatron.config.schema.hindsight import HindsightConfig
from herl_megatron.config.schema.loops import DPOConfig, SFTConfig, TrainConfig
from herl_megatron.config.schema.megatron import MegatronConfig
from herl_megatron.config.schema.rollout import RolloutConfig
from herl_megatron.config.schema.run import ClusterConfig, RunConfig
from herl_megatron.config.schema.scoring import JudgeConfig, ScoringConfig
from herl_megatron.config.schema.state import CheckpointConfig, ParityConfig, WeightSyncConfig
from herl_megatron.config.schema.tracking import TrackingConfig

__all__ = [
    "AlgorithmConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DPOConfig",
    "DataConfig",
    "EvalConfig",
    "HindsightConfig",
    "ImproveConfig",
    "JudgeConfig",
    "MegatronConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParityConfig",
    "Precision",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "ScoringConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "WeightSyncConfig",
]


class Config(Section):
    """A whole run: `herl train`, `sft`, `dpo`, `eval` and `improve` read the same file format."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    hindsight: HindsightConfig = HindsightConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()
    sft: SFTConfig = SFTConfig()
    dpo: DPOConfig = DPOConfig()
    eval: EvalConfig = EvalConfig()
    improve: ImproveConfig = ImproveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    megatron: MegatronConfig = MegatronConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    parity: ParityConfig = ParityConfig()
    scoring: ScoringConfig = ScoringConfig()
    judge: JudgeConfig = JudgeConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
