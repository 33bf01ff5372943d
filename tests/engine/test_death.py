"""Nobody waits for an engine that is gone."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from tests.engine.harness import running_engine
from tests.engine.tiny_models import make_model, make_requests

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("death") / "model"
    make_model(path)
    return path


def test_dead_thread_fails_every_call_with_the_reason(folder: Path) -> None:
    def out_of_memory() -> None:
        raise MemoryError("no memory left")

    async def scenario(engine: VLLMEngine) -> None:
        open_call = asyncio.create_task(engine.generate(make_requests(4, max_tokens=400)))
        await engine.generate(make_requests(1, max_tokens=2, prefix="short"))
        await engine._call(lambda llm: setattr(llm.engine_core, "get_output", out_of_memory))
        for call in (
            open_call,
            engine.generate(make_requests(1)),
            engine.weight_version(),
            engine.start_weight_update(),
        ):
            with pytest.raises(RuntimeError, match="thread died: MemoryError: no memory left"):
                await asyncio.wait_for(call, 20)

    with running_engine(folder) as engine:
        asyncio.run(scenario(engine))


def test_a_step_that_does_not_end_shows(folder: Path) -> None:
    """Asked from outside: the thread itself is stuck and can answer nothing."""
    release = threading.Event()

    async def scenario(engine: VLLMEngine) -> None:
        assert engine.stalled_s() == 0
        await engine.generate(make_requests(2, max_tokens=4))
        while engine.stalled_s():  # its last step may not be over yet
            await asyncio.sleep(0.01)
        step = await engine._call(lambda llm: llm.engine_core.get_output)

        def stuck() -> Any:
            release.wait(20)
            return step()

        await engine._call(lambda llm: setattr(llm.engine_core, "get_output", stuck))
        call = asyncio.create_task(engine.generate(make_requests(1, max_tokens=2, prefix="stuck")))
        await asyncio.sleep(0.6)
        assert 0.3 < engine.stalled_s() < 10
        release.set()
        await asyncio.wait_for(call, 20)
        while engine.stalled_s():
            await asyncio.sleep(0.01)

    with running_engine(folder) as engine:
        asyncio.run(scenario(engine))


def test_shutdown_ends_open_requests(folder: Path) -> None:
    async def scenario(engine: VLLMEngine) -> None:
        call = asyncio.create_task(engine.generate(make_requests(4, max_tokens=400)))
        await engine.generate(make_requests(1, max_tokens=2, prefix="short"))
        await engine.shutdown()
        completions = await asyncio.wait_for(call, 20)
        assert {completion.finish_reason for completion in completions} == {"abort"}
        assert all(1 <= len(completion.token_ids) < 400 for completion in completions)
        with pytest.raises(RuntimeError, match="was shut down"):
            await engine.generate(make_requests(1))

    unfreeze = gc.unfreeze
    with running_engine(folder) as engine:
        frozen = gc.get_freeze_count()
        asyncio.run(scenario(engine))
    # vLLM's imports are 400,000 objects, which its end would have the collector look at four times.
    assert gc.get_freeze_count() > 0.9 * frozen > 100_000
    assert gc.unfreeze is unfreeze


def test_engine_that_cannot_start_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_position_embeddings=2048"):
        with running_engine(folder, max_model_tokens=4096):
            pass
    with pytest.raises((ValueError, OSError), match="nowhere"):
        with running_engine(tmp_path / "nowhere"):
            pass


def test_process_without_the_environment_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_ATTN_SPLIT_KV")
    with pytest.raises(RuntimeError, match="VLLM_CPU_ATTN_SPLIT_KV are not set.*engine_environ"):
        with running_engine(folder):
            pass
