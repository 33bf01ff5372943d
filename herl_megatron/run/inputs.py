"""What a run reads from disk: tokenizer and prompts, checked before Ray starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from herl_megatron.algos.own_advantage import check_advantage, open_advantage
from herl_megatron.algos.own_loss import check_loss, open_loss
from herl_megatron.config.hooks import Hook, is_hook, load_hook
from herl_megatron.config.schema import Config, HindsightConfig, ScoringConfig
from herl_megatron.data.chat import ChatTokenizer, open_chat_tokenizer
from herl_megatron.data.fingerprints import fingerprints
from herl_megatron.data.prompt_source import (
    check_no_leakage,
    check_prompt_lengths,
    load_prompt_files,
    load_prompts,
)
from herl_megatron.hindsight.known_methods import check_rows, ignored_keys
from herl_megatron.rollout.modes import prompts_in_flight
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits
from herl_megatron.rubrics.checks.registry import load_check_modules
from herl_megatron.rubrics.checks.sources import source_hash
from herl_megatron.rubrics.group_reward import check_group_reward
from herl_megatron.rubrics.scorer import require_judge
from herl_megatron.run.model_files import check_model, check_vocabulary
from herl_megatron.types import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Everything read from disk: checked, and cheap compared with what starts next."""

    tokenizer: ChatTokenizer
    train: tuple[Prompt, ...]
    eval: tuple[Prompt, ...]
    fingerprints: Mapping[str, str]
    """Of all that decides results, by name."""


def load_inputs(
    config: Config,
    *,
    training: bool,
    revises: bool | None = None,
    reads_weights: bool | None = None,
) -> Inputs:
    """Read and check the model's files, tokenizer and prompts.

    revises: whether revision prompts are written, by default where hindsight trains.
    reads_weights: whether `model.path` is read again after a resume, by default where no trainer
        gives the engines their weights, and for a reference model.

    Raises:
        ValueError: a bad row (file and line), a prompt over the limit, a tokenizer without chat
            template or end token, a model's file that cannot be used.
    """
    revises = training and config.hindsight.enabled if revises is None else revises
    if reads_weights is None:
        reads_weights = not training or bool(config.algorithm.kl_coef)
    limits = CheckLimits(memory_bytes=config.scoring.check_memory_bytes)
    # Before rows that name a user's own check.
    load_check_modules(config.scoring.check_modules, limits=limits)
    hooks = algorithm_hooks(config) if training else []
    reward = _group_reward(config.scoring) if training else {}
    check_model(config.model, trains=training)
    tokenizer = open_chat_tokenizer(
        config.model, config.data, answer_after=config.scoring.answer_after
    )
    check_vocabulary(tokenizer, config.model)
    train = tuple(load_prompts(config.data.train)) if training else ()
    held_out = tuple(load_prompt_files(config.data.eval_files))
    for prompts in (train, held_out):
        check_prompt_lengths(prompts, tokenizer, config.data.max_prompt_tokens)
    if training:
        _check_method(config.hindsight, train)
    check_no_leakage(train, held_out)
    require_judge(config.judge, (*train, *held_out))
    if training and (needed := prompts_in_flight(config.train, config.rollout)) > len(train):
        raise ValueError(
            f"train.prompts_per_step is {config.train.prompts_per_step}, so in rollout.mode"
            f" {config.rollout.mode!r} {needed} prompts are sampled together,"
            f" but {config.data.train} has {len(train)} rows; lower it or give more rows"
        )
    return Inputs(
        tokenizer=tokenizer,
        train=train,
        eval=held_out,
        fingerprints=fingerprints(
            config.model,
            tokenizer,
            train=train,
            held_out=held_out,
            check_modules=config.scoring.check_modules,
            text_files={
                "judge.prompt": config.judge.prompt,
                "judge.grader_prompt": config.judge.grader_prompt,
                "hindsight.prompt_file": config.hindsight.prompt_file if revises else "",
            },
            hooks=[*hooks, *_sampling_hooks(config, training=training)],
            weights=reads_weights,
        )
        | reward,
    )


def algorithm_hooks(config: Config) -> list[Hook]:
    """The user's loss and advantage, where there are any, each tried before anything starts.

    Raises:
        ValueError: one cannot be loaded or called, or does not return what it must.
    """
    algorithm, hooks = config.algorithm, []
    if (loss := open_loss(algorithm)) is not None:
        check_loss(
            loss,
            with_reference=algorithm.kl_coef > 0,
            off_policy=config.hindsight.off_policy_loss == "own",
        )
        hooks.append(loss.hook)
    if (advantage := open_advantage(algorithm)) is not None:
        check_advantage(advantage)
        hooks.append(advantage.hook)
    return hooks


def _group_reward(scoring: ScoringConfig) -> dict[str, str]:
    """The fingerprint of a user's reward over a group, which can be imported and called; empty
    without one. It is no `Hook`: this process never imports it."""
    if not (name := scoring.group_reward):
        return {}
    source = source_hash(name.partition(":")[0], check_group_reward(scoring))
    return {f"source of scoring.group_reward {name}": source}


def _check_method(hindsight: HindsightConfig, train: Sequence[Prompt]) -> None:
    """Refuse rows that the hindsight method can do nothing with; say which keys it does not read.

    A warning: a file that is extended, or a run's own, has the keys of the other methods too.
    """
    for key, value in ignored_keys(hindsight).items():
        logger.warning(
            "hindsight.%s is %r, which hindsight.method %r does not read: it changes nothing",
            key, value, hindsight.method,
        )  # fmt: skip
    check_rows(hindsight, train)


def _sampling_hooks(config: Config, *, training: bool) -> list[Hook]:
    """The user's own code that rollouts and hindsight call, besides checks."""
    named = {"rollout.function": config.rollout.function}
    if training and config.hindsight.enabled and is_hook(config.hindsight.method):
        named["hindsight.method"] = config.hindsight.method
    return [load_hook(key, name) for key, name in named.items() if name]
