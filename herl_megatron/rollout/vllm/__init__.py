"""The rollout engine: everything of vLLM."""
