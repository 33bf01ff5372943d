"""The numbers of docs/reproduce.md: worked out again from the shapes, and rows planned anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from herl_megatron.config.load import load_config
from herl_megatron.models.flops import model_parameters
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.build import find_shape, make_plan
from herl_megatron.plan.command import choose_cluster
from herl_megatron.plan.machines import Assumptions
from herl_megatron.reproduce.paper_rows import MODELS, all_rows, find_row
from herl_megatron.reproduce.row_parts import LAYOUTS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
DISK = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) GB \| (\d+) GB \| (\d+) \|$", PAGE, re.M)
TIMES = re.findall(
    r"^\| (\S+)/(\w+)/herl \| ([\d.]+) \| (\d+) \| (\d+) \| `herl plan (\S+) --gpu (\S+)` \|$",
    PAGE,
    re.M,
)
TRAINED = {name: sum(row.model == name and bool(row.task) for row in all_rows()) for name in MODELS}


def test_disk() -> None:
    """2 bytes a parameter of a policy, 14 of a checkpoint."""
    assert len(DISK) == 3
    total = 0.0
    for (title, policy, checkpoint, rows), name in zip(DISK, MODELS, strict=True):
        assert MODELS[name].startswith(title)
        shape = ROOT / "configs/shapes" / f"{MODELS[name]}.json"
        parameters = model_parameters(read_architecture(str(shape)))
        assert float(policy) == pytest.approx(2e-9 * parameters, abs=0.05)
        assert int(checkpoint) == round(14e-9 * parameters)
        assert int(rows) == TRAINED[name]
        total += 2e-9 * parameters * int(rows)
    assert f"All policies: {total:.0f} GB" in PAGE
    assert (
        f"herl reproduce --list                                        # {len(all_rows())} rows"
        in PAGE
    )


def test_gpu_hours_follow_from_the_steps() -> None:
    assert len(TIMES) == 6
    total = 0.0
    for model, task, seconds, steps, hours, path, _ in TIMES:
        assert path == f"configs/reproduce/{model}_{task}.yaml"
        exact = float(seconds) * int(steps) * 8 / 3600
        assert int(hours) == pytest.approx(exact, abs=1)
        total += exact * sum(
            (row.model, row.task) == (model, task) and row.method not in ("sft", "dpo")
            for row in all_rows()
        )
    assert f"some {round(total, -2):,.0f} GPU hours" in PAGE


def test_a_steps_time_is_what_the_plan_says() -> None:
    """Of the smallest model; the others are made by the same command."""
    ((*_, path, gpu),) = [line for line in TIMES if line[:2] == ("llama3.2_3b", "if")]
    (seconds,) = [line[2] for line in TIMES if line[5] == path]
    config = load_config(ROOT / path)
    cluster = choose_cluster(config, gpu, gpus_per_node=8, host_gib=0)
    shape = find_shape(config, near=ROOT / path)
    plan = make_plan(config, shape, cluster=cluster, assumed=Assumptions())
    assert float(seconds) == pytest.approx(sum(plan.seconds.values()), rel=0.05)


@pytest.mark.parametrize("method", ["rlvr", "naive_he", "he"])
def test_the_ablation_fits_where_herl_does(method: str) -> None:
    """The rows that have no file of their own in configs/reproduce/, in the fullest layout."""
    row = find_row(f"qwen2.5_7b/medical/{method}")
    files = [ROOT / "configs" / name for name in (
        f"models/{row.model}.yaml", f"tasks/{row.task}.yaml",
        f"scale/{LAYOUTS[row.model, row.task]}.yaml", "presets/released_medical.yaml",
        f"methods/{method}.yaml",
    )]  # fmt: skip
    config = load_config(files)
    cluster = choose_cluster(config, "h100-80", gpus_per_node=8, host_gib=0)
    shape = find_shape(config, near=files[0])
    plan = make_plan(config, shape, cluster=cluster, assumed=Assumptions())
    assert plan.problems == () and plan.fits
