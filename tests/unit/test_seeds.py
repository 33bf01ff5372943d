"""Derived seeds: the same on every machine, different for everything that differs."""

from __future__ import annotations

from herl_megatron.seeds import (
    derive_seed,
    join_seed,
    request_seed,
    selection_seed,
)


def test_a_seed_is_sha256_of_the_json_list() -> None:
    # printf '[7, 3, "p0", "rollout", 1]' | sha256sum -> 4a3e1dafa6c76206..., halved
    seed = request_seed(7, step=3, prompt_id="p0", kind="rollout", index=1)
    assert seed == 0x4A3E1DAFA6C76206 >> 1 == 2674873023808647427


def test_everything_that_is_sampled_has_its_own_seed() -> None:
    seeds = [
        request_seed(run, step=step, prompt_id=prompt, kind=kind, index=index)
        for run in (0, 1)
        for step in (0, 1, 11)
        for prompt in ("1", "11", "p")
        for kind in ("rollout", "revision")
        for index in (0, 1, 11)
    ]
    small = [(0, 0), (0, 1), (1, 0), (1, 1)]
    seeds += [f(r, step=s, prompt_id="1") for f in (selection_seed, join_seed) for r, s in small]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 3 * 2 * 3 + 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_parts_do_not_run_into_each_other() -> None:
    assert derive_seed(1, "a", "b") != derive_seed(1, "ab") != derive_seed(1, "a", "b", "")
    assert derive_seed(1, 1) != derive_seed(1, "1") != derive_seed(11)
