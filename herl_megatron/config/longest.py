"""How long sequences get: what an engine is started for."""

from __future__ import annotations

from herl_megatron.config.schema import Config


def eval_response_tokens(config: Config) -> int:
    """Longest response to a held-out prompt, in tokens."""
    own = config.eval.max_response_tokens
    return config.rollout.max_response_tokens if own is None else own


def longest_sequences(config: Config) -> list[tuple[str, int, str, int]]:
    """Key and tokens of a prompt, key and tokens of the response to it, of each kind of sequence:
    first samples, revisions and, where they have a limit of their own, evaluations."""
    data = config.data
    response = ("rollout.max_response_tokens", config.rollout.max_response_tokens)
    kinds = [
        ("data.max_prompt_tokens", data.max_prompt_tokens, *response),
        ("data.max_experience_tokens", data.max_experience_tokens, *response),
    ]
    if (own := config.eval.max_response_tokens) is not None:
        prompt = ("data.max_prompt_tokens", data.max_prompt_tokens)
        kinds.append((*prompt, "eval.max_response_tokens", own))
    return kinds


def longest_tokens(config: Config) -> int:
    """Tokens of the longest sequence that an engine must hold."""
    return max(prompt + response for _, prompt, _, response in longest_sequences(config))
