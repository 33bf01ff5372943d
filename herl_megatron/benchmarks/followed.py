"""IFEval and IFBench: four accuracies, of prompts and of instructions, strict and loose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from herl_megatron.benchmarks.answered import Answered, all_met, mean, per_prompt
from herl_megatron.benchmarks.measured import Measured
from herl_megatron.types import CriterionResult, Verdict


def four_accuracies(answered: Sequence[Answered]) -> Measured:
    """`prompt_strict` (the headline): share of responses that follow all their instructions.
    `instruction_strict`: share of instructions that are followed. `prompt_loose`,
    `instruction_loose`: the same where the best of a response's eight variants counts; missing
    where no loose verdicts were asked for.

    An instruction that no response can be judged by is left out. A response for which a loose
    verdict failed is in neither loose number.
    """
    prompts = [value for _, value in per_prompt(answered, all_met)]
    sides = [(len(s.satisfied), len(s.unmet)) for one in answered for s in one.scored]
    metrics = {"prompt_strict": mean(prompts), "instruction_strict": _share(sides)}
    loose = [_loose(one) for one in answered]
    if any(loose):
        counts = [pair for found in loose for pair in found]
        of_prompts = [mean([float(not unmet) for _, unmet in found]) for found in loose if found]
        metrics |= {"prompt_loose": mean(of_prompts), "instruction_loose": _share(counts)}
    return Measured("prompt_strict", prompts, metrics)


def _share(counts: Iterable[tuple[int, int]]) -> float:
    pairs = list(counts)
    followed = sum(good for good, _ in pairs)
    return followed / (followed + sum(bad for _, bad in pairs))


def _loose(one: Answered) -> list[tuple[int, int]]:
    """Followed and not followed instructions of each response that has loose verdicts."""
    sides = (_sides(results) for results in one.loose)
    return [pair for pair in sides if pair is not None and pair != (0, 0)]


def _sides(results: Sequence[CriterionResult]) -> tuple[int, int] | None:
    """None where a verdict failed for this response."""
    verdicts = [r.verdict for r in results if not r.for_every_response]
    if Verdict.UNVERIFIABLE in verdicts:
        return None
    followed = verdicts.count(Verdict.FOLLOWED)
    return followed, len(verdicts) - followed
