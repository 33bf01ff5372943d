"""Prompts, chat templates and data sources."""
