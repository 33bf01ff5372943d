"""Benchmarks' own metrics from scored responses (pure functions)."""
