"""Sizes, addresses and sections that mean nothing are refused by the command that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.commands.to_megatron import main as to_megatron
from herl_megatron.commands.verify import main as verify
from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.rules.megatron import shape_problems
from herl_megatron.config.schema import Config
from herl_megatron.plan.machines import choose_gpu


@pytest.mark.parametrize("size", ["--tp=0", "--tp=-1", "--vpp=0", "--threads=0"])
def test_no_checkpoint_of_zero_ranks_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit) as end:
        to_megatron(["--hf", str(tmp_path), "--out", str(tmp_path / "out"), size])
    assert end.value.code == 2 and "is below 1" in capsys.readouterr().err


def test_logits_of_no_tokens_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verify(["--hf", "a", "--megatron", "b", "--logits", "--tokens", "0"])
    assert "0 is below 1" in capsys.readouterr().err


def test_a_gpu_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpu 'inf_GiB'"):
        choose_gpu("inf_GiB")


def test_a_section_that_is_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("run: {name: x}\ntrain: [steps]\n")
    with pytest.raises(ConfigError, match=r"train \(line 2\): a list is no section"):
        load_config(file)


def test_experts_that_are_null_are_left_to_whom_names_the_file() -> None:
    shape = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": None}
    shape |= {"moe_intermediate_size": None}
    assert list(shape_problems(Config(), shape, purpose="train", device="cpu")) == []
