"""Run folders made by hand, as small as the report can read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.config.load import save_resolved
from herl_megatron.config.schema import (
    Config,
    DataConfig,
    HindsightConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)

Line = Mapping[str, Any]


def make_run(
    folder: Path,
    *,
    seed: int,
    lines: Sequence[Line],
    alpha: float = 0.05,
    steps: int = 2,
    name: str = "herl",
    model: str | None = None,
    held_out: tuple[str, ...] = (),
) -> Path:
    """A run of 2 prompts x 4 rollouts per step in `folder`/`name`, with these metrics."""
    config = Config(
        run=RunConfig(name=name, dir=str(folder), seed=seed),
        model=ModelConfig(path=model or f"{folder}/sft/policy"),
        data=DataConfig(
            train="t" if held_out else f"{folder}/toy/train.jsonl", eval=held_out or ""
        ),
        rollout=RolloutConfig(group_size=4),
        hindsight=HindsightConfig(alpha=alpha),
        train=TrainConfig(steps=steps, prompts_per_step=2, prompts_per_optimizer_step=2),
    )
    path = folder / name
    path.mkdir(parents=True)
    save_resolved(config, path / "config.yaml")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


def response(
    index: int, satisfied: Sequence[str], unmet: Sequence[str], **more: Any
) -> dict[str, Any]:
    total = len(satisfied) + len(unmet)
    verdicts = [{"criterion": c, "verdict": "followed", "reason": ""} for c in satisfied]
    verdicts += [{"criterion": c, "verdict": "not_followed", "reason": "no"} for c in unmet]
    return {
        "index": index,
        "text": f"text {index}",
        "tokens": 3,
        "reward": len(satisfied) / total if total else None,
        "unscored": None if total else "judge: HTTP 401",
        "satisfied": list(satisfied),
        "unmet": list(unmet),
        "verdicts": verdicts,
    } | more


def group(
    prompt_id: str, rollouts: Sequence[dict[str, Any]], revisions: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "messages": [{"role": "user", "content": "Write."}],
        "criteria": [
            {"id": "c1", "check": "text/all_lowercase", "description": "Use lowercase."},
            {"id": "c2", "check": "", "description": "Be polite."},
        ],
        "rollouts": list(rollouts),
        "revisions": list(revisions),
    }


def write_step(run: Path, step: int, groups: Sequence[dict[str, Any]]) -> Path:
    path = run / "rollouts" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in groups))
    return path
