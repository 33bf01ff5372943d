"""The client against a real judge: `vllm serve` on the CPU, constrained by the schema.

The model is tiny and random, so its verdicts mean nothing; that every answer is valid JSON with
exactly the asked keys is what the constraint has to give.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from herl_megatron.config.schema import JudgeConfig
from herl_megatron.data.toy_model import write_model_folder
from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.types import (
    Aggregation,
    Criterion,
    CriterionResult,
    Message,
    Prompt,
    Rubric,
    Verdict,
)
from tests.serve import Server, vllm_serve

pytestmark = pytest.mark.engine
CRITERIA = tuple(
    Criterion(f"c{i}", "judge", description=f"The response names {what}.")
    for i, what in enumerate(("a river", "a garden", "old stones"))
)
TEXTS = [f"The old river {i} runs past the garden." for i in range(8)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("judge")
    write_model_folder(folder / "model", seed=0)
    config = json.loads((folder / "model/config.json").read_text())
    config["max_position_embeddings"] = 8192  # rules and statements in a tokenizer of bytes
    (folder / "model/config.json").write_text(json.dumps(config))
    options = (
        "--dtype", "float32", "--max-model-len", "8192", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", "67108864",
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    )  # fmt: skip
    log = folder / "serve.log"
    with vllm_serve(folder / "model", *options, name="judge", log=log) as serving:
        yield serving


def ask(
    server: Server, texts: list[str], *, aggregation: Aggregation = "explicit", **changes: Any
) -> tuple[list[list[CriterionResult]], dict[str, float]]:
    values: dict[str, Any] = {
        "base_url": server.url, "model": "judge", "cache": "", "evidence": False, "canary": False,
        "retries": 0, "retry_wait_s": 0.1,
    }  # fmt: skip
    prompt = Prompt("p", (Message("user", "Write."),), Rubric(CRITERIA, aggregation))

    async def run() -> tuple[list[list[CriterionResult]], dict[str, float]]:
        client = JudgeClient(JudgeConfig(**values | changes))
        try:
            await client.preflight()
            calls = (client.judge(prompt, text, CRITERIA) for text in texts)
            return list(await asyncio.gather(*calls)), client.stats()
        finally:
            await client.close()

    return asyncio.run(run())


def test_every_answer_of_a_real_judge_is_valid_and_each_response_costs_one_call(
    server: Server,
) -> None:
    before = server.counted()
    results, stats = ask(server, TEXTS + TEXTS)
    assert server.counted() - before == 1 + len(TEXTS)  # the preflight's and one for each
    assert (stats["judged"], stats["unjudged"], stats["shared"]) == (8, 0, 8)
    assert all(r.verdict is not Verdict.UNVERIFIABLE for group in results for r in group)
    assert results[: len(TEXTS)] == results[len(TEXTS) :]
    assert stats["tokens_in"] > 9 * 500 and stats["tokens_out"] >= 9 * 5
    assert ask(server, TEXTS)[0] == results[: len(TEXTS)]  # temperature 0: the same again


def test_grades_of_a_real_judge_are_on_the_scale(server: Server) -> None:
    results, stats = ask(server, TEXTS[:4], aggregation="implicit")
    grades = [result.grade for group in results for result in group]
    assert stats["unjudged"] == 0 and len(grades) == 12
    assert set(grades) <= {n / 10 for n in range(1, 11)}


def test_a_judge_that_guesses_is_found_out_by_the_canaries(server: Server) -> None:
    """A verdict of a random model stands only where it was right about both canaries."""
    results, stats = ask(server, TEXTS, canary=True)
    assert stats["failures_canary"] == stats["unjudged"] >= 1
    bad = [r.reason for group in results for r in group if r.verdict is Verdict.UNVERIFIABLE]
    assert len(bad) == 3 * stats["unjudged"]
    assert set(bad) == {"judge: canary: wrong about a statement whose truth is known"}


def test_answers_that_never_end_and_wrong_models_are_named(server: Server) -> None:
    """A random model never closes a string, so its quotes run into the limit."""
    with pytest.raises(ValueError, match=r"does not work: the answer was cut \(raise judge.max"):
        ask(server, TEXTS[:1], evidence=True, max_tokens=30)
    with pytest.raises(ValueError, match="HTTP 404 .*'other'.*judge.model"):
        ask(server, TEXTS[:1], model="other")
