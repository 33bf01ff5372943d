"""Ray: placement, workers, health."""
