"""`herl dpo`: direct preference optimisation with the same Megatron trainer.

The reference is the model as it starts. Its log-probs of the pairs that will be used are computed
once before the first step, two numbers a pair, so no second model is in memory. A step is two
passes, see `algos.losses_dpo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from herl_megatron.algos.losses_dpo import PairLogProbs, pair_loss
from herl_megatron.array_text import ArrayText
from herl_megatron.commands.results import TuneResult
from herl_megatron.commands.sft import batches, to_token_row
from herl_megatron.commands.tune import tune
from herl_megatron.config.loop_keys import loop_keys
from herl_megatron.config.schema import Config, DPOConfig
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.preference_pairs import PreferencePair, load_pairs
from herl_megatron.data.prompt_source import SftRow
from herl_megatron.run.tuning_inputs import load_tuning_inputs, open_tokenizer
from herl_megatron.types import CoefficientRow, FloatArray, Message, TokenRow

_NUMBERS, _LOG_PROBS = ArrayText("<i4"), ArrayText("<f8")


@dataclass(frozen=True, eq=False)
class PairRows:
    """A pair as rows of token ids."""

    chosen: TokenRow
    rejected: TokenRow


class ShowsProgress(Protocol):
    """What is needed of `run.folder.RunFolder`."""

    def progress(self, steps: range, label: str) -> Iterator[int]:
        """Yield `steps` and show how far they are."""
        ...


class PairTrainer(Protocol):
    """What is needed of `cluster.trainer.TrainerGroup`."""

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        """Response log-probs, `[response]` each, at temperature 1."""
        ...

    async def coefficient_step(self, rows: Sequence[CoefficientRow]) -> dict[str, float]:
        """One optimizer step on minus the sum of `coefficient` times response log-prob."""
        ...


def to_pair_rows(pair: PreferencePair, tokenizer: ChatTokenizer, *, max_tokens: int) -> PairRows:
    """Both answers as responses to the prompt, ended by the turn's end token.

    Raises ValueError for one longer than `max_tokens`, as `sft.to_token_row`.
    """
    chosen, rejected = (
        to_token_row(
            SftRow(f"{pair.where} ({name})", (*pair.messages, Message("assistant", text))),
            tokenizer,
            max_tokens=max_tokens,
            limit="dpo.max_tokens",
        )
        for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    return PairRows(chosen, rejected)


async def sequence_log_probs(trainer: PairTrainer, pairs: Sequence[PairRows]) -> torch.Tensor:
    """Log-prob of each whole response under the current weights: `[pairs, 2]` float64, chosen and
    rejected."""
    values = await trainer.log_probs(_rows(pairs))
    sums = [value.astype(np.float64).sum() for value in values]
    return torch.tensor(sums, dtype=torch.float64).reshape(-1, 2)


async def dpo_step(
    trainer: PairTrainer, pairs: Sequence[PairRows], reference: torch.Tensor, config: DPOConfig
) -> dict[str, float]:
    """One optimizer step on the mean loss of `pairs`; `reference` are their log-probs under the
    reference, as `sequence_log_probs` gives them.

    Returns the loss and its parts before the step, and the trainer's numbers.
    """
    current = await sequence_log_probs(trainer, pairs)
    log_probs = PairLogProbs(current[:, 0], current[:, 1], reference[:, 0], reference[:, 1])
    loss = pair_loss(
        log_probs, name=config.loss, beta=config.beta, label_smoothing=config.label_smoothing
    )
    learned = await trainer.coefficient_step(_weighted(pairs, loss.slopes / len(pairs)))
    chosen, rejected = current.mean(0).tolist()
    return learned | loss.metrics() | {"chosen_log_prob": chosen, "rejected_log_prob": rejected}


class DpoTask:
    """A step is one batch of pairs, compared with what the reference says of them.

    A checkpoint keeps that: two numbers a pair cost next to nothing and are exact under any layout
    of the ranks, where the reference's passes would have to be made again, and round differently.
    """

    def __init__(
        self, pairs: Sequence[PairRows], config: DPOConfig, *, seed: int, shuffle: bool
    ) -> None:
        """seed, shuffle: of the order in which pairs are drawn, as in `sft.batches`."""
        self._pairs = pairs
        self._config = config
        self._steps = list(_batches(len(pairs), config, seed=seed, shuffle=shuffle))
        self.reference = torch.full((len(pairs), 2), torch.nan, dtype=torch.float64)

    async def of_start(self, trainer: PairTrainer, folder: ShowsProgress) -> None:
        """Ask the reference, which the trainer still is, for all pairs that will be used and that
        no checkpoint knew."""
        drawn = dict.fromkeys(number for step in self._steps for number in step)
        missing = [number for number in drawn if self.reference[number].isnan().any()]
        size = self._config.pairs_per_step
        for start in folder.progress(range(0, len(missing), size), "reference"):
            numbers = missing[start : start + size]
            values = await sequence_log_probs(trainer, [self._pairs[n] for n in numbers])
            self.reference[numbers] = values

    async def step(self, trainer: PairTrainer, step: int) -> dict[str, float]:
        """See `TuningTask`."""
        numbers = list(self._steps[step])
        pairs = [self._pairs[n] for n in numbers]
        metrics = await dpo_step(trainer, pairs, self.reference[numbers], self._config)
        return {f"dpo/{name}": value for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """The reference's log-probs of the pairs that it was asked for."""
        known = (~self.reference.isnan().any(1)).nonzero().flatten()
        return {
            "pairs": _NUMBERS.encode(known.numpy()),
            "reference": _LOG_PROBS.encode(self.reference[known].flatten().numpy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back.

        Raises:
            ValueError: they are not log-probs of these pairs.
        """
        try:
            known = _NUMBERS.decode(state["pairs"])
            values = _LOG_PROBS.decode(state["reference"]).reshape(len(known), 2)
            if not np.isfinite(values).all():
                raise ValueError("not every one is finite")
            if len(known) and not 0 <= known.min() <= known.max() < len(self._pairs):
                raise ValueError(f"they are of other pairs than the {len(self._pairs)} here")
        except (KeyError, ValueError) as error:
            raise ValueError(
                "cannot resume: the reference's log-probs in the checkpoint cannot be read"
                f" ({error!r}); remove that checkpoint to go on from an earlier one, or give the"
                " new run another run.name"
            ) from error
        self.reference[known] = torch.from_numpy(values)


async def dpo(config: Config) -> TuneResult:
    """Learn from `dpo.data` and export the policy.

    Raises:
        ValueError: bad rows, model or layout (before anything is started where possible).
        SavedForResume, WorkerError: as `tune`.
    """
    tokenizer = open_tokenizer(config)
    loaded = load_pairs(config.dpo.data)
    pairs = [to_pair_rows(pair, tokenizer, max_tokens=config.dpo.max_tokens) for pair in loaded]
    loop = loop_keys(config, purpose="dpo")
    inputs = load_tuning_inputs(
        config,
        tokenizer,
        loop=loop,
        rows=[asdict(replace(pair, where="")) for pair in loaded],
        seen={pair.messages: pair.where for pair in loaded},
    )
    task = DpoTask(pairs, config.dpo, seed=config.run.seed, shuffle=config.data.shuffle)
    return await tune(config, inputs, task, loop=loop)


def _batches(
    pairs: int, config: DPOConfig, *, seed: int, shuffle: bool
) -> Iterator[tuple[int, ...]]:
    """The pairs of each step, by number."""
    stream = batches(range(pairs), size=config.pairs_per_step, seed=seed, shuffle=shuffle)
    return islice(stream, config.step_count)


def _rows(pairs: Sequence[PairRows]) -> list[TokenRow]:
    return [row for pair in pairs for row in (pair.chosen, pair.rejected)]


def _weighted(pairs: Sequence[PairRows], slopes: torch.Tensor) -> list[CoefficientRow]:
    """The pairs' rows with what their log-probs are multiplied with: d(-loss)/d(log-prob)."""
    return [
        CoefficientRow(row.prompt_id, row.context_token_ids, row.response_token_ids, coefficient)
        for pair, slope in zip(pairs, slopes.tolist(), strict=True)
        for row, coefficient in ((pair.chosen, -slope), (pair.rejected, slope))
    ]
