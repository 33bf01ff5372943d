"""Rules of sections `run` and `cluster`: the run's folder, and the GPUs of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from herl_megatron.config.load import ConfigError
from herl_megatron.config.loop_keys import samples
from herl_megatron.config.machine import Machine
from herl_megatron.config.paths import plan_start
from herl_megatron.config.purpose import RESUMES, TRAINS, Purpose
from herl_megatron.config.schema import Config
from herl_megatron.gpus import read_gpus

_SOCKET_BYTES = 107
_RAY_SOCKET = "/ray/session_2026-11-30_20-53-39_123456_4194304/sockets/plasma_store"
"""The longest that Ray makes below its temporary folder, with the largest number of a process."""


def start_problems(config: Config, purpose: Purpose) -> Iterator[str]:
    """Why the run cannot begin in its folder; looks at the disk."""
    try:
        plan_start(config, purpose=purpose)
    except ConfigError as error:
        yield from error.problems
    if config.cluster.gpu_table:
        try:
            read_gpus(Path(config.cluster.gpu_table))
        except ValueError as error:
            yield f"cluster.gpu_table: {error}"
    if config.run.resume and purpose not in RESUMES:
        yield f"run.resume is true, but `herl {purpose}` writes no checkpoints; set it to false"
    yield from _temporary_folder(config)


def _temporary_folder(config: Config) -> Iterator[str]:
    """Ray's sockets lie below it, and the kernel takes names of 107 bytes."""
    if config.cluster.address:
        return
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    longest = _SOCKET_BYTES - len(_RAY_SOCKET)
    if name and (size := len(os.environ[name].encode())) > longest:
        yield (
            f"{name} is {os.environ[name]!r:.60} of {size} bytes, below which Ray has its sockets:"
            f" it may have {longest}; set it to a shorter path, such as {name}=/tmp"
        )


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """What this machine has not, of what the run asks for."""
    trains, sampled = purpose in TRAINS, samples(config, purpose=purpose)
    if machine.device(config.cluster.device) == "cuda":
        if machine.gpus:
            yield from _gpus(config, machine, trains=trains, sampled=sampled)
        elif not config.cluster.address:  # a driver that joins a cluster needs none
            yield "cluster.device is 'cuda' but torch sees no CUDA device; use 'cpu' or 'auto'"
    if trains and machine.precision_problem:
        yield machine.precision_problem


def _gpus(config: Config, machine: Machine, *, trains: bool, sampled: bool) -> Iterator[str]:
    megatron, rollout = config.megatron, config.rollout
    if config.cluster.address:
        return  # the GPUs of the other machines are Ray's to count
    if trains and megatron.world_size > machine.gpus:
        yield (
            f"megatron: TP {megatron.tensor_parallel} * PP {megatron.pipeline_parallel} * CP"
            f" {megatron.context_parallel} * DP {megatron.data_parallel} = {megatron.world_size}"
            f" ranks, but this machine has {machine.gpus} GPUs; make the product smaller or join"
            " a cluster with cluster.address"
        )
    engine_gpus = rollout.replicas * rollout.tensor_parallel
    if sampled and engine_gpus > machine.gpus:
        yield (
            f"rollout.replicas {rollout.replicas} * rollout.tensor_parallel"
            f" {rollout.tensor_parallel} = {engine_gpus} GPUs, but this machine has"
            f" {machine.gpus}; lower one of them"
        )
