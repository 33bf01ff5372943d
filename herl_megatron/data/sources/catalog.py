"""The data sets that can be prepared, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from herl_megatron.data.sources.common import Converted, Options, SourceRow
from herl_megatron.data.sources.gpqa import convert_gpqa
from herl_megatron.data.sources.healthbench import convert_healthbench
from herl_megatron.data.sources.healthbench_500 import HEALTHBENCH_500
from herl_megatron.data.sources.hir_16k import convert_hir
from herl_megatron.data.sources.ifeval import convert_ifbench, convert_ifeval
from herl_megatron.data.sources.known_sets import KnownSet
from herl_megatron.data.sources.llmeval_med import add_earlier_turns, convert_llmeval_med
from herl_megatron.data.sources.math_500 import convert_math_500
from herl_megatron.data.sources.muldimif import convert_muldimif
from herl_megatron.data.sources.plain import convert_plain
from herl_megatron.data.sources.rar import convert_rar_medicine, convert_rar_science
from herl_megatron.data.sources.writingbench import convert_writingbench


def _unchanged(rows: Sequence[SourceRow]) -> list[SourceRow]:
    return list(rows)


@dataclass(frozen=True)
class DataSource:
    """A data set: its converter, and what it is for.

    eval_share: the part of the prompts that is held out when the set has no splits of its own;
        all of a benchmark. join: what has to be known of other rows before one is converted.
        holds: a part of it that is a benchmark of its own and must not be trained on.
    """

    convert: Callable[[SourceRow, Options], Converted]
    about: str
    eval_share: float = 1.0
    join: Callable[[Sequence[SourceRow]], list[SourceRow]] = _unchanged
    holds: KnownSet | None = None


SOURCES: Mapping[str, DataSource] = {
    "hir": DataSource(convert_hir, "HIR-16K, training: rules and statements", 0.02),
    "rar_medicine": DataSource(convert_rar_medicine, "RaR-Medicine, train, val and test", 0.02),
    "rar_science": DataSource(convert_rar_science, "RaR-Science, train, val and test", 0.02),
    "ifeval": DataSource(convert_ifeval, "IFEval, 541 prompts, rules"),
    "ifbench": DataSource(convert_ifbench, "IFBench, rules"),
    "muldimif": DataSource(convert_muldimif, "MulDimIF, rules read from text"),
    "healthbench": DataSource(
        convert_healthbench, "HealthBench, statements with points", holds=HEALTHBENCH_500
    ),
    "writingbench": DataSource(convert_writingbench, "WritingBench, grades 1 to 10 by bands"),
    "llmeval_med": DataSource(
        convert_llmeval_med, "LLMEval-Med, reference and checklist", join=add_earlier_turns
    ),
    "math_500": DataSource(convert_math_500, "MATH-500, the final answer as mathematics"),
    "gpqa": DataSource(convert_gpqa, "GPQA, the letter of one of four choices"),
    "plain": DataSource(convert_plain, "rows of your own", 0.02),
}
