"""A node out of memory: one line that says who held it, the whole report in run.log alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from herl_megatron import api, prepared
from herl_megatron.cli import app
from herl_megatron.config.schema import Config, ModelConfig, RunConfig
from herl_megatron.observability.node_memory import in_short
from herl_megatron.run.folder import RunFolder

# As Ray 2.60 writes it, with other numbers.
REPORT = """trainer rank 1 failed during 'train_step': OutOfMemoryError: 1 worker(s) were killed \
due to the node running low on memory. Memory on the node (IP: 10.1.2.3, ID: 496c84d0) was 22.90GB \
used / 24.00GB limit (0.954167)
OOM kill reason: Memory usage 24588968896B exceeded threshold of 24481253744B (95.0% of \
25769803776B limit)
Object store memory usage: [- objects spillable: 0
- bytes spillable: 0

Eviction Stats:
(global lru) capacity: 83886080]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(e9abffc9): job ID=01000000, task name=rank-1:TrainerRank.__init__)
]
Total non-selected idle workers: 0
To see more information about memory usage on this node, use `ray logs raylet.out -ip 10.1.2.3`
Top 10 memory users: PID	MEM(GB)	COMMAND
4711	19.80	ray::TrainerRank.train_step
4712	1.25	ray::EngineWorker
99	0.40	python -m herl_megatron.cli train a.yaml
100	0.10	bash
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/...
"""
SHORT = (
    "trainer rank 1 failed during 'train_step': OutOfMemoryError: 1 worker(s) were killed due to"
    " the node running low on memory: node 10.1.2.3 had 22.90 of 24.00 GB in use, most of it 19.80"
    " GB by ray::TrainerRank.train_step (process 4711), 1.25 GB by ray::EngineWorker (process"
    " 4712),"
    " 0.40 GB by python -m herl_megatron.cli train a.yaml (process 99); `herl plan` says what each"
    " process of a run needs, other programs there need theirs"
)


def test_it_says_which_node_and_who() -> None:
    assert in_short(REPORT) == SHORT


def test_other_messages_stay_as_they_are() -> None:
    assert in_short("engine 1 died\nof something") == "engine 1 died\nof something"


def test_without_a_list_of_users_the_node_is_named() -> None:
    text = in_short(REPORT.partition("OOM kill")[0])
    assert "node 10.1.2.3 had 22.90 of 24.00 GB in use; `herl plan`" in text


def test_the_log_file_alone_has_the_whole_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(run=RunConfig(dir=str(tmp_path), name="run"), model=ModelConfig(path="toy"))
    with pytest.raises(RuntimeError), RunFolder.create(config) as folder:
        raise RuntimeError(REPORT)
    log = (folder.path / "run.log").read_text()
    assert log.count(SHORT) == 1 and log.count("Ray killed 1 worker(s)") == 1
    assert "Ray killed" not in caplog.text


def test_the_command_line_prints_it_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(REPORT)

    # `api` takes `prepare` over when it is first imported: not while another stands there.
    assert api.prepare is prepared.prepare
    monkeypatch.setattr(prepared, "prepare", fail)
    done = CliRunner().invoke(app, ["train", "a.yaml"])
    assert done.exit_code == 1
    assert "19.80 GB by ray::TrainerRank" in done.output and "Ray killed" not in done.output
