"""HeRL on Megatron-Core: hindsight-guided reinforcement learning from rubric rewards."""

__version__ = "0.1.0"
