"""Rubrics: criteria, verdicts, rewards, rule checks and the scoring pool."""
