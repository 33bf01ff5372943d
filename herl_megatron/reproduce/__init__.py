"""The paper's tables: its rows, the commands that make each, and what was measured beside it."""
