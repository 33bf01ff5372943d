"""The Megatron-Core actor and reference; the only place that imports megatron.core."""
