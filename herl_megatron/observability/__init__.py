"""Metrics, logs, timers, rollout logs and curves."""
