"""A run: its folder, lock and checkpoints, the parts that it is made of, how it stops."""
