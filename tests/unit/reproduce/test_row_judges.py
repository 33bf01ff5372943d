"""The judges of a row: who is asked before its first stage, and what is said of who is silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from herl_megatron.commands.row_judges import (
    PLACEHOLDER,
    judges_of,
    silent_judges,
    unnamed_judges,
)
from herl_megatron.config.load import load_config
from herl_megatron.reproduce.chain import make_chain
from herl_megatron.reproduce.paper_rows import find_row
from herl_megatron.reproduce.stage import ChainOptions, Stage
from tests.fake_judge import fake_judge
from tests.unit.reproduce.config_folder import JUDGED, ROOT, copy_configs

CLOSED = "http://127.0.0.1:9/v1"
"""Nobody listens on the port of `discard`."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_configs(tmp_path_factory.mktemp("judges"))


def row_of(configs: Path, name: str, **more: object) -> tuple[list[Stage], ChainOptions]:
    asked = ChainOptions(configs, configs.parent / "runs", **more)  # type: ignore[arg-type]
    return make_chain(find_row(name), asked), asked


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("qwen3_4b/base", [*JUDGED]),
        ("qwen3_4b/if/herl", ["writingbench"]),
        ("qwen3_4b/if/dpo", ["writingbench"]),
        ("qwen3_4b/medical/rlvr", ["the training rows", "llmeval_med", "healthbench_500"]),
        ("qwen3_4b/medical/sft", ["llmeval_med", "healthbench_500", "the references"]),
        ("qwen3_4b/medical/dpo",
         ["the training rows", "llmeval_med", "healthbench_500", "the references"]),
    ],
)  # fmt: skip
def test_whom_a_row_asks(name: str, wanted: list[str], configs: Path) -> None:
    stages, asked = row_of(configs, name, overrides=("judge.samples=3",) if "med" in name else ())
    found = list(judges_of(stages))
    assert [one.name for one in found] == wanted
    assert {one.judge.samples for one in found if one.name[:4] == "the "} <= {3}
    said = unnamed_judges(stages, asked)
    unnamed = [line for line in said if line.startswith("judge of ")]
    assert all(PLACEHOLDER in line for line in unnamed)
    groups = [
        [one for one in wanted if one.startswith("the ") == training] for training in (True, False)
    ]
    assert sorted(line.partition(": ")[0] for line in unnamed) == sorted(
        f"judge of {', '.join(names)}" for names in groups if names
    )


def test_the_toy_asks_nobody(configs: Path) -> None:
    assert list(judges_of(row_of(configs, "qwen3_4b/medical/herl", scale="toy")[0])) == []


def test_the_files_name_the_placeholder() -> None:
    files = ["tasks/medical.yaml", *(f"benchmarks/{name}.yaml" for name in JUDGED)]
    assert {load_config(ROOT / "configs" / file).judge.base_url for file in files} == {PLACEHOLDER}


def test_who_is_named_is_not_missing(configs: Path) -> None:
    given = ("judge.base_url=http://127.0.0.1:8000/v1",)  # be it where the files have it
    stages, asked = row_of(configs, "qwen3_4b/medical/herl", overrides=given)
    (said,) = [line for line in unnamed_judges(stages, asked) if line.startswith("judge of")]
    assert said.startswith("judge of llmeval_med, healthbench_500: none is named")
    assert said.endswith("give --eval judge.base_url=... --eval judge.model=...")


def test_each_judge_is_asked_once(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training rows and references have one judge, the benchmarks another: two small questions.
    What is done asks nobody."""
    monkeypatch.chdir(tmp_path)
    settings = ("judge.model=m", "judge.grader_prompt=''")
    with fake_judge() as one, fake_judge() as other:
        stages, _ = row_of(
            configs, "qwen3_4b/medical/dpo",
            overrides=(f"judge.base_url={one.url}", settings[0]),
            evaluation=(f"judge.base_url={other.url}", *settings, "judge.temperature=0",
                        "judge.samples=1", "judge.max_tokens=64"),
        )  # fmt: skip
        assert silent_judges(stages) == []
        assert [len(judge.requests) for judge in (one, other)] == [1, 1]
        assert {judge.requests[0]["model"] for judge in (one, other)} == {"m"}
        done = [replace(stage, finished=()) for stage in stages]
        assert silent_judges(done) == []
        assert [len(judge.requests) for judge in (one, other)] == [1, 1]
    assert list(tmp_path.iterdir()) == []  # no cache of answers


def test_who_is_silent_is_said_with_the_keys(configs: Path) -> None:
    with fake_judge(lambda response, call: "403") as refuses:
        stages, _ = row_of(
            configs, "qwen3_4b/medical/herl",
            overrides=(f"judge.base_url={CLOSED}", "judge.retries=0"),
            evaluation=(f"judge.base_url={refuses.url}", "judge.grader_prompt=''"),
        )  # fmt: skip
        said = silent_judges(stages)
    (closed,) = [line for line in said if line.startswith("judge of the training rows: ")]
    assert CLOSED in closed and closed.endswith("give judge.base_url=... judge.model=...")
    assert len(said) == 3  # the benchmarks' settings differ
    for name in ("llmeval_med", "healthbench_500"):
        (refused,) = [line for line in said if line.startswith(f"judge of {name}: the judge ")]
        assert "does not work" in refused and "403" in refused
        assert refused.endswith("give --eval judge.base_url=... --eval judge.model=...")


def test_a_judge_whose_prompt_is_not_here_is_not_asked(configs: Path) -> None:
    with fake_judge() as judge:
        stages, asked = row_of(
            configs, "qwen3_4b/if/herl", evaluation=(f"judge.base_url={judge.url}",)
        )
        (said,) = silent_judges(stages)
        assert said == unnamed_judges(stages, asked)[0]
        assert "writingbench: judge.grader_prompt: no such file" in said
        assert judge.requests == []
