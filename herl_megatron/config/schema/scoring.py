"""Sections `scoring` and `judge`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from herl_megatron.config.schema.base import (
    BY_CONTENT,
    MOST_AT_ONCE,
    MOST_PROCESSES,
    MOST_ROWS,
    MOST_TOKENS,
    Nothing,
    Section,
    Speed,
    Verdicts,
)


class ScoringConfig(Section):
    """The scoring pool."""

    workers: Speed[int] = Field(default=2, gt=0, le=MOST_PROCESSES)
    """Ray workers that run rule checks."""
    check_timeout_s: Verdicts[float] = Field(default=5.0, gt=0)
    """Longest run of one check on one response."""
    check_memory_bytes: Verdicts[int] = Field(default=4 << 30, gt=0)
    """Most memory of a check of `check_modules`, all its processes together, on top of what the
    import of the modules took."""
    timeout_s: Speed[float] = Field(default=300, gt=0)
    """Longest wait for one group's scores."""
    answer_after: Verdicts[str] = ""
    """Score, judge and revise only what follows this text in a response, as `</think>` for models
    that think before they answer; a response without it has no answer: no check follows and no
    statement is true. Empty: the whole response."""
    check_modules: Verdicts[tuple[str, ...]] = ()
    """Python modules that register further checks; the driver and every worker import them."""
    group_reward: Verdicts[str] = ""
    """A function `module:function` of your own that gives the rewards of a whole training group,
    given its texts and their scores by the rubric (docs/extending_rewards.md); empty: the rubric's
    rewards. Evaluation, `herl improve` and `herl score` report the rubric's in any case."""
    group_reward_timeout_s: Verdicts[float] = Field(default=10.0, gt=0)
    """Longest run of that function on one group."""


class JudgeConfig(Section):
    """The judge of criteria of kind `judge`: one model behind an OpenAI-compatible endpoint.

    A key comes from the environment alone; it is in no configuration, log, error or metric.
    """

    base_url: Speed[str] = ""
    """Address up to its version, as in http://host:8000/v1; empty: rows that need a judge are
    refused. Several addresses of the same model, separated by commas, take turns."""
    model: Verdicts[str] = ""
    """Name of the model at the endpoint; part of the cache's key."""
    api_key_env: Nothing[str] = ""
    """Environment variable with the key, in capitals; empty for an endpoint that needs none."""
    prompt: Annotated[Verdicts[str], BY_CONTENT] = ""
    """Text file with a user message of your own, see `rubrics.judge.wording`; empty: ours."""
    grader_prompt: Annotated[Verdicts[str], BY_CONTENT] = ""
    """Text file with a benchmark's own prompt (HealthBench, WritingBench, LLMEval-Med): asked,
    answered and failed as there, without our guards, see `rubrics.judge.grader_prompt`."""
    temperature: Verdicts[float | None] = Field(default=0.0, ge=0)
    """Sampling temperature; null sends none, for models that refuse it."""
    max_tokens: Verdicts[int] = Field(default=4096, gt=0, le=MOST_TOKENS)
    """Longest answer in tokens, for all statements of a rubric together."""
    samples: Verdicts[int] = Field(default=1, gt=0, le=99)
    """Judgements of each response, an odd number: of statements the majority counts, of grades the
    mean (LLMEval-Med takes three). One that fails leaves the response unscored."""
    structured: Verdicts[Literal["json_schema", "json_object", "none"]] = "json_schema"
    """How the endpoint is told to answer in JSON; the answer is checked in any case."""
    extra_body: Verdicts[dict[str, Any]] = {}
    """Further fields of every request, e.g. {chat_template_kwargs: {enable_thinking: false}}."""
    evidence: Verdicts[bool] = True
    """Ask for a quote (of a grade: a reason) with each verdict; a quote must be in the response."""
    canary: Verdicts[bool] = True
    """Hide statements whose truth is known among the others; a wrong answer voids the judgement."""
    concurrency: Speed[int] = Field(default=64, gt=0, le=MOST_AT_ONCE)
    """Requests at the same time."""
    requests_per_minute: Speed[float] = Field(default=0, ge=0)
    """Most requests in a minute, evenly spaced; 0 is no limit."""
    tokens_per_minute: Speed[float] = Field(default=0, ge=0)
    """Most tokens in a minute (estimated: a token per four characters); 0 is no limit."""
    timeout_s: Speed[float] = Field(default=120, gt=0)
    """Longest wait for one answer."""
    deadline_s: Speed[float] = Field(default=600, gt=0)
    """Longest time spent on one response: calls and waits between them, not queues or pauses."""
    retries: Speed[int] = Field(default=4, ge=0, le=100)
    """Further attempts after a failed one."""
    retry_wait_s: Speed[float] = Field(default=1.0, gt=0)
    """First wait between attempts, and between probes in a pause; it doubles each time."""
    cache: Nothing[str] = "runs/judge_cache.sqlite"
    """SQLite file of judgements, for all runs of this machine (local disk); empty keeps none."""
    failure_window: Speed[int] = Field(default=40, gt=0, le=MOST_ROWS)
    """Latest calls that are looked at together."""
    failure_share: Speed[float] = Field(default=0.5, gt=0, le=1)
    """Share of failed calls in the window from which scoring pauses until the judge is back."""
    max_pause_s: Speed[float] = Field(default=3600, gt=0)
    """A longer pause ends the run; it can be resumed."""
    price_in: Nothing[float] = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, for `judge/cost`."""
    price_out: Nothing[float] = Field(default=0.0, ge=0)
    """Price of a million answer tokens."""
    max_calls: Nothing[int] = Field(default=0, ge=0)
    """Most requests of a run, over all its starts; 0 is no cap. A training run that reaches a cap,
    or has less left of it than its dearest step took, is saved and paused after the step under way:
    raise the cap and go on with `run.resume`. `herl eval`, `improve` and `score` stop at once, and
    keep what is done."""
    max_cost: Nothing[float] = Field(default=0.0, ge=0)
    """The same for what they cost by `price_in` and `price_out`."""
