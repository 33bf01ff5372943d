"""Where data sets and benchmarks come from, as `herl data` takes them, and how each is fetched.

Files are named with the commit that was looked at, so that they stay what they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Origin:
    """One data set.

    source: as `herl data` calls it. place: a name on the Hugging Face Hub, or a file below the
    working folder. url: of that file; empty for a name on the Hub. options: of `herl data`.
    sizes: prompts of the whole set, of a training set those to train on, as `herl data` then makes
    them; several where it was published in several sizes.
    """

    source: str
    place: str
    url: str = ""
    options: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def fetch(self) -> str:
        """The command that gets it where there is network; what it writes is `fetched`."""
        if self.url:
            return f"curl -fL --create-dirs -o {self.place} {self.url}"
        return f"hf download --repo-type dataset {self.place} --local-dir {self.fetched}"

    @property
    def fetched(self) -> str:
        """Where `fetch` writes."""
        return self.place if self.url else f"downloads/{self.place.partition('/')[2]}"


_BENCHMARK = ("--benchmark",)
_IFBENCH = "evaluation/IFBench/data/input_response_data_qwen25_7b.jsonl"
TRAINING: Mapping[str, Origin] = {
    "if": Origin("hir", "sastpg/HIR-16K", options=("--no-judge",), sizes=(10394,)),
    "medical": Origin("rar_medicine", "ScaleAI/RaR-Medicine", sizes=(17926,)),
}
"""By task."""
EVALUATION: Mapping[str, Origin] = {
    "ifeval": Origin("ifeval", "google/IFEval", options=_BENCHMARK, sizes=(541,)),
    # 294 rows, as the paper's 26.2 of the first base row (77 of 294); upstream has 300 by now.
    "ifbench": Origin(
        "ifbench",
        "downloads/ifbench.jsonl",
        f"{_RAW}/sastpg/HIR/3e5b880c0a76de103786bdb8e193ec4206c4f831/{_IFBENCH}",
        _BENCHMARK,
        (294,),
    ),
    "muldimif": Origin(
        "muldimif",
        "downloads/muldimif_test.json",
        f"{_RAW}/Junjie-Ye/MulDimIF/c0e5546ab4e4fd4096c3f05b05fb7928b1f5e17e/Data/test.json",
        _BENCHMARK,
        (1200,),
    ),
    "writingbench": Origin(
        "writingbench",
        "downloads/writingbench_all.jsonl",
        f"{_RAW}/X-PLUG/WritingBench/main/benchmark_query/benchmark_all.jsonl",
        _BENCHMARK,
        (1000, 1239),
    ),
    "llmeval_med": Origin(
        "llmeval_med",
        "downloads/llmeval_med.json",
        f"{_RAW}/llmeval/LLMEval-Med/88de31b8443e8da0b42a2f4a95a443c9903c3950/dataset/dataset.json",
        _BENCHMARK,
        (667,),
    ),
    # The paper's name is that of the 500 rows which RuscaRL validates on.
    "healthbench_500": Origin(
        "healthbench",
        "downloads/healthbench_val.parquet",
        f"{_RAW}/IANNXANG/RuscaRL/18e2b0122fd1914b1a40365486a19b31b460814d"
        "/data/health_bench/healthbench_val.parquet",
        _BENCHMARK,
        (500,),
    ),
}
"""By benchmark."""
MODEL_NAMES: Mapping[str, str] = {
    "qwen2.5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama3.2_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen3_4b": "Qwen/Qwen3-4B-Instruct-2507",
}
"""On the Hub."""


def is_cached_data_set(name: str) -> bool:
    """Whether `datasets` has something of a name on the Hub in its cache on this machine."""
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    return (cache / name.replace("/", "___")).is_dir()
