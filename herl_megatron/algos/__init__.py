"""Advantages, losses, log-probs and reductions (pure functions)."""
