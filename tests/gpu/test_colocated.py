"""Trainer and vLLM on one GPU: sleep and wake, weight syncs, and the parity gate after each.

NOT RUN YET (see conftest.py). vLLM itself: sleeping frees memory, waking gives it back with the
same weights (level 1) or refuses to sample until the next sync (level 2). The whole loop: two steps
of `herl train` on the toy task with trainer rank and engine taking turns; the gate compares every
weight version, so that a sync that lost or mixed weights ends the run. Weights stay in GPU memory
(CUDA IPC) unless the case says otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
ENGINE = """
import asyncio, json, sys
import numpy as np
import torch
from herl_megatron.engine import EngineConfig
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import GenerateRequest, SamplingSettings

async def main(folder):
    engine = VLLMEngine(EngineConfig(
        model_path=folder, dtype="bfloat16", max_model_tokens=128, max_num_seqs=8,
        kv_cache_bytes=0, gpu_memory_utilization=0.3, tensor_parallel=1, device="cuda"))
    async def sample(name):
        request = GenerateRequest(
            request_id=name, prompt_token_ids=np.arange(20, dtype=np.int32),
            sampling=SamplingSettings(temperature=0.0, max_tokens=16), seed=0)
        return (await engine.generate([request]))[0].token_ids.tolist()
    def free():
        return torch.cuda.mem_get_info()[0]
    before, awake = await sample("before"), free()
    await engine.sleep(1)
    asleep = free()
    await engine.wake()
    after, again = await sample("after"), free()
    await engine.sleep(2)
    dropped = free()
    await engine.wake()
    try:
        await sample("lost")
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    await engine.shutdown()
    print("ANSWER", json.dumps(dict(
        before=before, after=after, refused=refused, awake=awake, asleep=asleep, again=again,
        dropped=dropped, total=torch.cuda.mem_get_info()[1])))

asyncio.run(main(sys.argv[1]))
"""


def test_an_engine_sleeps_and_wakes(
    toy: Path, record_property: Callable[[str, object], None]
) -> None:
    """In a process of its own, started with the engine's environment."""
    from herl_megatron.rollout.vllm.engine_environment import engine_environment

    environment = os.environ | engine_environment("cuda", 4) | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", ENGINE, str(toy / "model")],
        env=environment, capture_output=True, text=True, timeout=280, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    line = next(line for line in ran.stdout.splitlines() if line.startswith("ANSWER "))
    answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
    record_property("free_bytes", json.dumps(answer))
    assert answer["before"] == answer["after"]
    assert "sync weights first" in answer["refused"]
    # 0.3 of the GPU is nearly all KV cache here; graphs and CUDA's context stay.
    for asleep in (answer["asleep"], answer["dropped"]):
        assert asleep - answer["awake"] > 0.2 * answer["total"]
    assert abs(answer["again"] - answer["awake"]) < 0.02 * answer["total"]


@pytest.fixture(scope="module")
def prompts(toy: Path) -> Path:
    """Rubrics that random text meets in part, so that there is something to learn."""
    path = toy / "words.jsonl"
    with path.open("w") as file:
        for index in range(16):
            criteria = [
                {
                    "id": relation, "kind": "rule",
                    "check": "ifeval/length_constraints:number_words",
                    "params": {"relation": relation, "num_words": number + index % 3},
                }
                for relation, number in (("at least", 9), ("less than", 12))
            ]  # fmt: skip
            text = f"Write {index} lines about the river."
            row = {
                "id": f"p{index}",
                "messages": [{"role": "user", "content": text}],
                "rubric": {"criteria": criteria},
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        ("rollout.sleep=1",),
        ("rollout.sleep=2",),
        ("rollout.sleep=1", "weight_sync.transport=shared_memory"),
        ("rollout.sleep=1", "megatron.reference=host", "algorithm.kl_coef=0.01"),
        ("rollout.quantization=fp8", "algorithm.mismatch_weight=true"),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_steps_on_one_gpu(
    toy: Path,
    prompts: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    record_property: Callable[[str, object], None],
) -> None:
    from herl_megatron import prepare, train

    config = prepare(
        ROOT / "configs/quickstart_cpu.yaml",
        [
            f"run.dir={tmp_path}", "run.name=gpu", "cluster.device=cuda",
            f"model.path={toy}/model", f"data.train={prompts}", "data.eval=",
            "data.max_prompt_tokens=64", "data.max_experience_tokens=256",
            "rollout.replicas=1", "rollout.dtype=bf16", "rollout.gpu_memory_utilization=0.3",
            "rollout.max_response_tokens=32", "rollout.group_size=8",
            "megatron.tensor_parallel=1", "megatron.data_parallel=1", "megatron.precision=bf16",
            "megatron.packing=true", "train.steps=2", "train.prompts_per_step=8",
            "train.prompts_per_optimizer_step=4", "train.eval_every=0", "train.export=false",
            "optimizer.lr=1e-4", "optimizer.warmup_steps=0", "parity.every=1",
            "checkpoint.every=0", *overrides,
        ],
    )  # fmt: skip
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "gpu/metrics.jsonl").open()]
    record_property("metrics", json.dumps(rows))
    assert len(rows) == 2
    fp8_mean, bf16_mean = config.parity.fp8_mean, config.parity.bf16_mean
    for step, row in enumerate(rows):
        assert row["weight_sync/version"] == step + 1
        assert np.isfinite(row["train/loss"])
        assert 0 < row["parity/mean"] < (fp8_mean if config.rollout.quantization else bf16_mean)
        assert row["time/turns_s"] > 0
    assert torch.cuda.mem_get_info()[0] > 0.9 * torch.cuda.mem_get_info()[1], "something was left"
