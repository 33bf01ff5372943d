"""Sampling with vLLM and the stream of groups through sampling, scoring and revision."""
