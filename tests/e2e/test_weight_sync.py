"""After a sync the engine equals, bit for bit, a fresh one loaded from the exported HF folder, and
its log-probs are the trainer's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from herl_megatron.cluster.engines import start_engines, stop_engines
from herl_megatron.cluster.placement import Placement, Slot, demand
from herl_megatron.cluster.reserve import reserve
from herl_megatron.cluster.restart import RestartingEngine
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.config.schema import (
    Config,
    MegatronConfig,
    ModelConfig,
    RunConfig,
    WeightSyncConfig,
)
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.engine import EngineConfig, RolloutEngine
from herl_megatron.types import Completion, GenerateRequest, SamplingSettings, TokenRow
from herl_megatron.weight_sync.sync import WeightSync

pytestmark = pytest.mark.e2e

VOCAB = 1000
LAYOUTS = {
    "tied": [(1, 2), (2, 2)],
    "untied": [(2, 1)],
    "glm4": [(1, 2)],
    "gemma3_text": [(2, 1)],
}
"""TP and PP of the trainers that fill one engine in turn. What each family exports on more of them:
tests/distributed/test_model_layouts.py."""
AGAIN = ("tied", "untied")
"""Models that a fresh engine loads from the exported folder. That an update equals a fresh engine,
for all families: tests/engine/test_weight_update.py."""


@pytest.fixture(scope="module", params=LAYOUTS)
def model(
    request: pytest.FixtureRequest, toy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the toy tokenizer: a four-layer Qwen2, or what other families have."""
    folder: Path = tmp_path_factory.mktemp("model")
    if request.param in ("tied", "untied"):
        config = AutoConfig.from_pretrained(
            toy / "model",
            num_hidden_layers=4,
            layer_types=["full_attention"] * 4,
            tie_word_embeddings=request.param == "tied",
        )
    else:
        own = {"gemma3_text": {"sliding_window": 9, "sliding_window_pattern": 2}}
        config = AutoConfig.for_model(
            request.param, vocab_size=VOCAB, hidden_size=128, intermediate_size=192,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            max_position_embeddings=256, initializer_range=0.1, bos_token_id=None, pad_token_id=0,
            eos_token_id=1, **own.get(request.param, {}),
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy / "model").save_pretrained(folder)
    return folder


def config_for(model: Path, tp: int, pp: int, seed: int) -> Config:
    """Random weights that differ with `seed`; buckets so small that a layer spans several."""
    return Config(
        run=RunConfig(seed=seed),
        model=ModelConfig(path=str(model), random_init=True),
        megatron=MegatronConfig(tensor_parallel=tp, pipeline_parallel=pp, precision="fp32"),
        weight_sync=WeightSyncConfig(bucket_bytes=200_000),
    )


def engine_config(folder: Path, *, random_weights: bool) -> EngineConfig:
    return EngineConfig(
        model_path=str(folder),
        dtype="float32",
        max_model_tokens=64,
        max_num_seqs=16,
        kv_cache_bytes=32 << 20,
        gpu_memory_utilization=0.5,
        tensor_parallel=1,
        device="cpu",
        random_weights=random_weights,
    )


async def sample(engine: RolloutEngine) -> list[Completion]:
    """The same twelve requests each time: six prompts, greedy and at temperature 1."""
    requests = [
        GenerateRequest(
            request_id=f"{index}-{temperature}",
            prompt_token_ids=prompt,
            sampling=SamplingSettings(temperature=temperature, max_tokens=16),
            seed=index,
        )
        for index, prompt in enumerate(prompts())
        for temperature in (0.0, 1.0)
    ]
    return await engine.generate(requests)


async def trainer_difference(trainer: TrainerGroup, sampled: list[Completion]) -> float:
    """Largest of the trainer's log-probs to those that the engine sampled at temperature 1."""
    rows = [TokenRow(c.request_id, prompts()[int(c.request_id[0])], c.token_ids) for c in sampled]
    own = await trainer.log_probs(rows)
    return max(float(np.abs(a - c.log_probs).max()) for a, c in zip(own, sampled, strict=True))


def prompts() -> list[np.ndarray]:
    """Six of 20 tokens."""
    generator = np.random.default_rng(7)
    return [generator.integers(0, VOCAB, 20, dtype=np.int32) for _ in range(6)]


def equal(left: list[Completion], right: list[Completion]) -> list[bool]:
    return [
        np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.log_probs, b.log_probs)
        for a, b in zip(left, right, strict=True)
    ]


def placed(config: Config) -> Placement:
    wanted = demand(config.megatron, config.rollout)
    return reserve(wanted, device="cpu", start_timeout_s=120).placement


async def start(
    config: Config, engine: EngineConfig, slots: Sequence[Slot]
) -> list[RestartingEngine]:
    return await start_engines(
        engine, rollout=config.rollout, sync_timeout_s=config.weight_sync.timeout_s,
        threads=config.cluster.threads_per_rank, slots=slots,
    )  # fmt: skip


async def sync_and_compare(
    model: Path, out: Path, layouts: list[tuple[int, int]], *, load_again: bool
) -> None:
    base = config_for(model, 1, 1, 0)
    slots = placed(base).engines
    engines = await start(base, engine_config(model, random_weights=True), slots)
    previous: list[Completion] | None = None
    for version, (tp, pp) in enumerate(layouts):
        config = config_for(model, tp, pp, seed=version)
        trainer = await start_trainer(
            trainer_sections(config, purpose="train"), slots=placed(config).trainer, device="cpu",
            optimizer_steps=1,
        )  # fmt: skip
        sync = WeightSync(trainer, engines, config.weight_sync)
        stats = await sync.run(version)
        sync.close()
        synced = await sample(engines[0])
        difference = await trainer_difference(trainer, [c for c in synced if "1.0" in c.request_id])
        assert difference < 1e-4, (tp, pp, difference)
        folder = out / f"policy-{version}"
        await trainer.export(folder)
        trainer.stop()
        if load_again:
            fresh = await start(config, engine_config(folder, random_weights=False), slots)
            loaded = await sample(fresh[0])
            await stop_engines(fresh)
            assert all(equal(synced, loaded)), (tp, pp)

        assert stats.buckets > 8, "the buckets should split layers"
        assert {completion.weight_version for completion in synced} == {version}
        # The same prompts again under other weights: neither weights nor prefix cache are stale.
        assert previous is None or not any(equal(synced, previous)), (tp, pp)
        previous = synced
    await stop_engines(engines)


def test_synced_engine_equals_the_trainer_and_a_fresh_engine(
    model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["model"]

    async def run() -> None:
        with ray_session(config_for(model, 1, 1, 0).cluster):
            await sync_and_compare(model, tmp_path, LAYOUTS[name], load_again=name in AGAIN)

    asyncio.run(run())
