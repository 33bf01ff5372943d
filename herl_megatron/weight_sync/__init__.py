"""From the sharded actor to the engines, one bucket at a time."""
