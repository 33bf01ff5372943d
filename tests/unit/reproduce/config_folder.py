"""A copy of `configs/`, with stand-ins for benchmarks whose files are not there."""

from __future__ import annotations

import shutil
from pathlib import Path

from herl_megatron.reproduce.paper_rows import BENCHMARKS

ROOT = Path(__file__).parents[3]
JUDGED = ("writingbench", "llmeval_med", "healthbench_500")


def copy_configs(folder: Path) -> Path:
    """`folder`/configs."""
    configs = folder / "configs"
    shutil.copytree(ROOT / "configs", configs)
    (configs / "benchmarks").mkdir(exist_ok=True)
    for name in BENCHMARKS:
        file = configs / "benchmarks" / f"{name}.yaml"
        if not file.exists():
            judge = "judge: {base_url: 'http://127.0.0.1:8000/v1', model: grader}\n"
            text = f"data: {{eval: data/{name}/eval.jsonl}}\neval: {{temperature: 0.6}}\n"
            file.write_text(text + (judge if name in JUDGED else ""))
    return configs
