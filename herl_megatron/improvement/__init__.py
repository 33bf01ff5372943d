"""Self-improvement at test time: trajectories, how they are drawn, and their log."""
