"""The rows of the paper's tables by name: `MODEL/base`, `MODEL/TASK/METHOD`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

MODELS: Mapping[str, str] = {
    "qwen2.5_7b": "Qwen2.5-7B-Instruct",
    "llama3.2_3b": "Llama-3.2-3B-Instruct",
    "qwen3_4b": "Qwen3-4B-Instruct-2507",
}
"""Name here (and of the file in `configs/models/`) -> name in the paper."""
METHODS: Mapping[str, str] = {
    "base": "base",
    "sft": "SFT",
    "dpo": "DPO",
    "rlvr": "RLVR",
    "naive_he": "+ NaiveHE",
    "he": "+ HE",
    "herl": "HeRL",
}
TASKS: Mapping[str, tuple[str, ...]] = {
    "if": ("ifeval", "ifbench", "muldimif", "writingbench"),
    "medical": ("llmeval_med", "healthbench_500"),
}
"""Task -> the benchmarks that its rows are evaluated on. The paper does not say which of its models
wrote the answers to WritingBench, which is out of its training domain: here the one that was
trained on instruction following."""
BENCHMARKS: Mapping[str, str] = {
    "ifeval": "IFEval",
    "ifbench": "IFBench",
    "muldimif": "MulDimIF",
    "writingbench": "WritingBench",
    "llmeval_med": "LLMEval-Med",
    "healthbench_500": "HealthBench-500",
}
"""Name here (and of the file in `configs/benchmarks/`) -> name in the paper, in its order."""
MAIN = ("base", "sft", "dpo", "rlvr", "herl")
ABLATION = ("rlvr", "naive_he", "he", "herl")
ABLATION_MODELS = ("qwen2.5_7b", "llama3.2_3b")
ABLATION_BENCHMARKS = ("ifbench", "writingbench", "healthbench_500")


@dataclass(frozen=True)
class PaperRow:
    """One run of the tables. task: empty for `base`, which nothing was trained on."""

    model: str
    task: str
    method: str

    @property
    def name(self) -> str:
        """As on the command line."""
        return "/".join(part for part in (self.model, self.task, self.method) if part)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """What its cells are measured on: of an ablation's own row, the ablation's columns."""
        wanted = TASKS[self.task] if self.task else tuple(BENCHMARKS)
        if self.method in MAIN:
            return wanted
        return tuple(name for name in wanted if name in ABLATION_BENCHMARKS)


def all_rows() -> list[PaperRow]:
    """Every row that has a cell in one of the tables, in their order."""
    rows = [PaperRow(model, "", "base") for model in MODELS]
    for model in MODELS:
        only = [name for name in ABLATION if name not in MAIN] if model in ABLATION_MODELS else []
        methods = [name for name in METHODS if name in (*MAIN[1:], *only)]
        rows += [PaperRow(model, task, method) for task in TASKS for method in methods]
    return rows


def find_row(name: str) -> PaperRow:
    """The row of a name.

    Raises:
        ValueError: there is none; with the names that are nearest.
    """
    rows = {row.name: row for row in all_rows()}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else "a name is MODEL/TASK/METHOD"
    raise ValueError(
        f"{name!r} is no row of the paper's tables; {meant} `herl reproduce --list` has them all"
    )
