"""What bench_step.py and bench_schedule.py control: lengths, prompts, scores and judge time."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herl_megatron.data.toy_text import TOPICS
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.types import Criterion, CriterionResult, Message, Prompt, Rubric, Score, Verdict

CRITERIA = 6
PROMPT_WORDS = 24
_JUDGE_SIGMA = 0.5


@dataclass(frozen=True)
class Variant:
    """One schedule under test; `revised` rollouts of each group get a revision, 0 is RLVR."""

    name: str
    revised: int
    streamed: bool = True
    judge: bool = False


def length_of(request_id: str, *, seed: Sequence[int], middle: float, longest: int) -> int:
    """Lognormal tokens with median `middle` and sigma 1, cut at `longest`; by seed and request."""
    draw = np.random.default_rng([*seed, zlib.crc32(request_id.encode())])
    return min(longest, max(1, round(middle * float(np.exp(draw.normal())))))


def make_prompts(count: int, *, cycle: int, variant: int) -> list[Prompt]:
    """Prompts of equal length. Other words for each variant, so that no variant finds another's
    prompt in the prefix cache; the same ids, which the lengths follow from."""
    words = [word for nouns in TOPICS.values() for word in nouns]
    rubric = Rubric(
        tuple(
            Criterion(f"c{index}", "judge", description=f"Write about the {word}.")
            for index, word in enumerate(words[:CRITERIA])
        )
    )
    prompts = []
    for index in range(count):
        chosen = random.Random(f"{cycle}/{variant}/{index}").choices(words, k=PROMPT_WORDS)
        message = Message("user", " " + " ".join(chosen))
        prompts.append(Prompt(f"p{index}", (message,), rubric))
    return prompts


class StubScorer:
    """Seeded verdicts: no first sample meets its rubric, a revision may; optional judge time.

    judge_s: median of a call's lognormal time (sigma 0.5), one call per response, at most
        `concurrency` at a time; 0 answers at once.
    """

    def __init__(self, *, seed: Sequence[int], judge_s: float, concurrency: int) -> None:
        self._seed = tuple(seed)
        self._judge_s = judge_s
        self._slots = asyncio.Semaphore(concurrency)
        self._calls: dict[str, int] = {}
        self._judging: dict[tuple[str, str], list[asyncio.Task[None]]] = {}

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """Begin the judge's call of a response whose group is not complete yet."""
        if self._judge_s:
            task = asyncio.ensure_future(self._judge(prompt, text))
            self._judging.setdefault((prompt.id, text), []).append(task)

    def paused_s(self) -> float:
        """It never is."""
        return 0.0

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """First call for a prompt: its first samples. Second: its revisions."""
        call = self._calls[prompt.id] = self._calls.get(prompt.id, 0) + 1
        draw = np.random.default_rng([*self._seed, zlib.crc32(prompt.id.encode()), call])
        met = draw.integers(0, CRITERIA + (call > 1), size=len(texts))
        if call == 1:
            met[0], met[1] = 0, CRITERIA - 1  # spread in every group: equal train rows
        await asyncio.gather(*(self._judged(prompt, text) for text in texts))
        return [self._score(prompt, int(count)) for count in met]

    async def _judged(self, prompt: Prompt, text: str) -> None:
        begun = self._judging.get((prompt.id, text))
        await (begun.pop() if begun else self._judge(prompt, text))

    async def _judge(self, prompt: Prompt, text: str) -> None:
        if self._judge_s:
            key = zlib.crc32(f"{prompt.id}/{len(text)}".encode())
            noise = np.random.default_rng([*self._seed, key]).normal()
            async with self._slots:
                await asyncio.sleep(self._judge_s * float(np.exp(_JUDGE_SIGMA * noise)))

    def _score(self, prompt: Prompt, met: int) -> Score:
        results = [
            CriterionResult(criterion.id, Verdict.FOLLOWED if index < met else Verdict.NOT_FOLLOWED)
            for index, criterion in enumerate(prompt.rubric.criteria)
        ]
        return score_response(prompt.rubric, results)
