"""The parity gate: after a weight sync every engine must compute the trainer's log-probs.

They never agree to the last bit, and how far two correct programs are apart is a property of model
and precision. So the gate first measures it (`measure_noise`): before anything was synced, an
engine that read the model's folder by vLLM's own loader is compared with the trainer, which read
the same folder by ours. What they differ by is rounding, or a wrong mapping of the model's settings
if it is beyond the caps; the limits of all later checks follow from it (`parity_limits`). Where no
engine can read the trainer's first weights (`model.random_init`, `model.megatron_path`,
`parity.baseline: first_sync`) the first sync is held to the caps and then is the measure.

Two kinds of probe tokens, because they take different ways through the engine:

- *scored*: the tokens of fixed training prompts, in one forward pass without the prefix cache;
- *sampled*: a few tokens drawn at temperature 1 behind a fixed long context, as rollouts are drawn:
  decoding kernels, and the context from the prefix cache. Before a checked sync the same context
  goes through the old weights, so that a cache which the sync does not reset is used and shows.

Two of the sampled responses are also compared with the engine itself, which reads them once more
without its cache: *cached*. It knows no trainer and hardly any rounding (on the CPU none at all),
so that keys and values of old weights show where the trainer's rounding would hide them.

Several engines are the same program, so they are also compared with each other: *agreement*, what
an engine says of the scored tokens against what the first one says. It knows hardly any rounding
either, and shows one engine, or one worker of it, that was left with the weights of a step before
where the rounding between trainer and engine would hide it.

Each kind has limits of its own, for they round differently. *cached* and *agreement*, where an
engine is compared with an engine, have a floor of their own as well, far below the others'
(`parity_limits.SAME_PROGRAM`). What stays below it they cannot see either.

Metrics: `parity/mean` and `parity/max`, mean and max over tokens of |engine's - trainer's|
log-prob, each the largest over engines, scored and sampled tokens; `parity/of_limit`, the largest
share of a limit that any kind takes (above 1 the run stops); `parity/tokens` and `parity/check_s`.
The gate cannot see a fault smaller than the rounding that the limits allow, such as one stale
bucket of the only engine after a step at a tiny learning rate in bf16.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from herl_megatron.config.schema import ParityConfig
from herl_megatron.engine import RolloutEngine
from herl_megatron.errors import RunError
from herl_megatron.seeds import derive_seed
from herl_megatron.types import (
    Completion,
    FloatArray,
    GenerateRequest,
    IntArray,
    Message,
    Prompt,
    SamplingSettings,
    TokenRow,
)
from herl_megatron.weight_sync.parity_limits import (
    Difference,
    Tolerance,
    compare,
    largest,
)

logger = logging.getLogger(__name__)

_LONGEST_TOKENS = 512
"""Where prompts and the context are cut: several blocks of any prefix cache (16 tokens, on CPU
128), while an engine computes the logits of all scored tokens, which takes memory."""
_SAMPLES = 4
_READ_AGAIN = 2
_SAMPLED_TOKENS = 32
"""With fewer the mean over all of them varies too much from draw to draw to be held to twice what
it was."""


Kinds = tuple[Difference, Difference, Difference, Difference]
"""Of scored, sampled and cached tokens, and of scored ones between the engines."""
_KINDS = ("scored", "sampled", "cached", "agreement")
_SAME_PROGRAM = (False, False, True, True)


class LogProbTrainer(Protocol):
    """What the gate asks of the trainer (`cluster.trainer.TrainerGroup`)."""

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        """Log-probs (temperature 1) of the rows' response tokens, `[response]` each."""
        ...


@dataclass(frozen=True, eq=False)
class Probes:
    """The fixed part of the probes.

    prompts: `[prompt]` each, scored from the second token on.
    context: `[context]`, what sampled probes continue by `sampled_tokens` each.
    """

    prompts: tuple[IntArray, ...]
    context: IntArray
    sampled_tokens: int


class ParityError(RunError):
    """An engine's log-probs are too far from the trainer's. `metrics` holds the numbers.

    Where they are not finite the policy is lost: one of the two computes NaN with its weights.
    """

    def __init__(self, message: str, *, version: int, metrics: dict[str, float]) -> None:
        lost = not all(math.isfinite(number) for number in metrics.values())
        super().__init__(message, policy_lost=lost)
        self.version = version
        self.metrics = metrics


def make_probes(prompts: Sequence[IntArray], *, max_model_tokens: int) -> Probes:
    """Probes from prompts of at least two tokens each.

    They are cut to `_LONGEST_TOKENS`. The context has the prompts' tokens, repeated or cut to that
    length or what a model of `max_model_tokens` has room for, in an order without sense: text that
    is easy to go on with is gone on with at log-prob 0, whatever the context's keys and values are.
    """
    scored = tuple(tokens[:_LONGEST_TOKENS] for tokens in prompts)
    sampled = min(_SAMPLED_TOKENS, max_model_tokens // 4)
    length = min(_LONGEST_TOKENS, max_model_tokens - sampled)
    context = np.resize(np.concatenate(scored), length)
    return Probes(scored, np.random.default_rng(0).permutation(context), sampled)


class ParityGate:
    """Compares every engine with the trainer, every `every` weight versions and at the start.

    `measure_noise` before the first sync; `prime` before and `check` after the sync of a version
    that is `due`; `probes` never change.

    Attributes:
        limits: of each of `Kinds`; the caps until `measure_noise` or the first check.
    """

    def __init__(
        self,
        trainer: LogProbTrainer,
        engines: Sequence[RolloutEngine],
        *,
        probes: Probes,
        tolerance: Tolerance,
        every: int,
        seed: int,
    ) -> None:
        self._trainer = trainer
        self._engines = tuple(engines)
        self.probes = probes
        self.limits = (tolerance.caps,) * len(_KINDS)
        self._tolerance = tolerance
        self._measured = False
        self._every = every
        self._seed = seed
        self._started = False

    def due(self, version: int) -> bool:
        """Whether this version is to be checked; the first one that a run serves always is."""
        return not self._started or version % self._every == 0

    async def measure_noise(self) -> None:
        """Compare the first engine, which has read the trainer's weights from their folder itself.

        Raises:
            ParityError: they are further apart than the caps allow, or not finite.
        """
        (kinds,) = await self._compare_all(self._engines[:1], "noise")
        if self._share(kinds) <= 1:
            # One engine agrees with itself to the last bit; what the same program rounds from one
            # batch to another is in its second reading.
            scored, sampled, cached, _ = kinds
            self._take_noise((scored, sampled, cached, cached), "as read from model.path")
            return
        found = largest(kinds)
        raise ParityError(
            "parity gate: before any weight sync, with the weights that vLLM and the trainer each"
            f" read from model.path, they compute different log-probs: {self._shown(kinds)}. Likely"
            " causes: the engine takes config.json's settings (rope, norm, biases, tied embeddings)"
            " or the stored tensors otherwise than the trainer, or this model rounds more than the"
            " caps allow (measure with tools/bench/check_log_probs.py, then raise them)",
            version=0,
            metrics={"parity/mean": found.mean, "parity/max": found.max},
        )

    def _take_noise(self, kinds: Sequence[Difference], of: str) -> None:
        self.limits = tuple(
            self._tolerance.limits(kind, same_program=same)
            for kind, same in zip(kinds, _SAME_PROGRAM, strict=True)
        )
        self._measured = True
        logger.info(
            "engine and trainer, %s, differ by rounding; from now on: %s", of, self._shown(kinds)
        )

    def _share(self, kinds: Sequence[Difference]) -> float:
        """Of the limits, the largest of all kinds; not above 1 is right."""
        shares = [kind.share_of(own) for kind, own in zip(kinds, self.limits, strict=True)]
        return float(np.max(shares))

    def _shown(self, kinds: Sequence[Difference]) -> str:
        """Each kind beside its limits."""
        parts = [
            f"{name} tokens {kind} (limits {own})"
            for name, kind, own in zip(_KINDS, kinds, self.limits, strict=True)
        ]
        how = "the caps of `parity`"
        if self._measured:
            how = f"{self._tolerance.factor:g} x the noise at the start, between floors and caps"
        return f"{'; '.join(parts)}; limits are {how}"

    async def prime(self, version: int) -> None:
        """Put the context into the engines' prefix caches, under the weights before `version`."""
        if self._started:  # before the first sync the engines have no weights
            requests = self._requests(f"parity-before-{version}")
            await asyncio.gather(*(engine.generate(requests[:1]) for engine in self._engines))

    async def check(self, version: int) -> dict[str, float]:
        """Compare all engines; returns the metrics (module docstring).

        Raises:
            ParityError: the first engine that is beyond a limit, both numbers and likely causes.
        """
        names = [f"engine {index}" for index in range(len(self._engines))]
        return await self._check(self._engines, names, version)

    async def check_restarted(self, engine: RolloutEngine, version: int) -> None:
        """Compare one engine that was started anew and given the weights of `version`.

        Raises:
            ParityError: like `check`.
        """
        await self._check((engine,), ("the restarted engine",), version)

    async def _check(
        self, engines: Sequence[RolloutEngine], names: Sequence[str], version: int
    ) -> dict[str, float]:
        begin = time.monotonic()
        self._started = True
        found = await self._compare_all(engines, str(version))
        total = largest([kind for kinds in found for kind in kinds[:2]])
        metrics = {
            "parity/mean": total.mean,
            "parity/max": total.max,
            "parity/of_limit": float(np.max([self._share(kinds) for kinds in found])),
            "parity/tokens": float(total.tokens),
            "parity/check_s": time.monotonic() - begin,
        }
        for engine, name, kinds in zip(engines, names, found, strict=True):
            if not self._share(kinds) <= 1:
                message = await self._message(engine, name, version, kinds)
                raise ParityError(message, version=version, metrics=metrics)
        if not self._measured:
            noise = [largest(kind) for kind in zip(*found, strict=True)]
            self._take_noise(noise, f"after the sync to weight version {version}")
        return metrics

    async def _compare_all(self, engines: Sequence[RolloutEngine], name: str) -> list[Kinds]:
        """Of every engine, from one pass of the trainer over all tokens; `name` of the check, for
        its requests."""
        answers = await asyncio.gather(*(self._ask(engine, name) for engine in engines))
        prompts, context = self.probes.prompts, self.probes.context
        rows = [_row(tokens[:1], tokens[1:]) for tokens in prompts]
        rows += [_row(context, one.token_ids) for _, samples, _ in answers for one in samples]
        log_probs = await self._trainer.log_probs(rows)
        ours, rest = log_probs[: len(prompts)], log_probs[len(prompts) :]
        found = []
        for number, (scored, samples, again) in enumerate(answers):
            drawn = [one.log_probs for one in samples]
            expected = rest[number * _SAMPLES : (number + 1) * _SAMPLES]
            cached = compare(drawn[-_READ_AGAIN:], again)
            agreement = compare(scored, answers[0][0])
            found.append((compare(scored, ours), compare(drawn, expected), cached, agreement))
        return found

    async def _ask(
        self, engine: RolloutEngine, name: str
    ) -> tuple[list[FloatArray], list[Completion], list[FloatArray]]:
        """Log-probs of the prompts, samples, and log-probs of the last samples once more."""
        prompts, context = self.probes.prompts, self.probes.context
        scored = await engine.score_tokens(prompts, [1] * len(prompts))
        samples = await engine.generate(self._requests(f"parity-{name}"))
        whole = [np.concatenate([context, one.token_ids]) for one in samples[-_READ_AGAIN:]]
        return scored, samples, await engine.score_tokens(whole, [len(context)] * len(whole))

    def _requests(self, name: str) -> list[GenerateRequest]:
        return [
            GenerateRequest(
                request_id=f"{name}-{index}",
                prompt_token_ids=self.probes.context,
                sampling=SamplingSettings(max_tokens=self.probes.sampled_tokens),
                seed=derive_seed(self._seed, name, index),
            )
            for index in range(_SAMPLES)
        ]

    async def _message(
        self,
        engine: RolloutEngine,
        name: str,
        version: int,
        kinds: Kinds,
    ) -> str:
        served = await engine.weight_version()
        scored, sampled, _, agreement = kinds
        if math.isnan(scored.mean) or math.isnan(sampled.mean):
            causes = (
                "the weights compute NaN (look at train/largest_weight and train/grad_norm), or"
                " the engine's do because a bucket was damaged on its way"
            )
        elif not agreement.within(self.limits[3]):
            causes = (
                "this engine and engine 0 hold different weights: one of them, or one worker of it,"
                " was not reached by the sync, or a weight bucket was not loaded there"
            )
        elif scored.within(self.limits[0]):
            causes = (
                "only sampled tokens differ: the prefix cache was not reset after the sync, or the"
                " engine's decoding or prefix attention is wrong"
            )
        else:
            causes = (
                "a weight bucket was not sent or not loaded, the weights have other names or layout"
                " in the engine, the model's settings (rope, norm, biases) differ, or the policy"
                " rounds far more by now than it did at the start (measure with"
                " tools/bench/check_log_probs.py, then raise parity.noise_factor or the caps)"
            )
        return (
            f"parity gate: after the sync to weight version {version} the log-probs of"
            f" {name} (it serves version {served}) are not the trainer's: {self._shown(kinds)}."
            f" Likely causes: {causes}"
        )


def open_gate(
    trainer: LogProbTrainer,
    engines: Sequence[RolloutEngine],
    *,
    parity: ParityConfig,
    tolerance: Tolerance,
    seed: int,
    prompts: Sequence[Prompt],
    prompt_ids: Callable[[tuple[Message, ...]], IntArray],
    max_model_tokens: int,
) -> ParityGate | None:
    """The gate as configured, on training prompts chosen with `seed`; None if it is off."""
    if not parity.every:
        return None
    order = np.random.default_rng(derive_seed(seed, "parity")).permutation(len(prompts))
    chosen = [prompt_ids(prompts[index].messages) for index in order[: parity.prompts]]
    return ParityGate(
        trainer,
        engines,
        probes=make_probes(chosen, max_model_tokens=max_model_tokens),
        tolerance=tolerance,
        every=parity.every,
        seed=seed,
    )


def _row(context: IntArray, response: IntArray) -> TokenRow:
    return TokenRow("(parity)", context, response)
