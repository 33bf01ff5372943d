"""Start and stop torch.distributed and Megatron-Core's model-parallel groups.

    groups = init_parallel(config, rank=0, world_size=2, init_method="tcp://host:port",
                           device=choose_device("cpu"), seed=0)
    ...
    shutdown_parallel()

Rank order is Megatron's (`tp-cp-ep-dp-pp`): TP ranks are neighbours, pipeline stages far apart.
"""

from __future__ import annotations

from datetime import timedelta

from herl_megatron.megatron import lean_import  # noqa: F401  # isort: skip (before megatron)
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.device import Device, check_precision, seed_everything
from herl_megatron.megatron import cpu
from herl_megatron.models.groups import Axis, Groups


def init_parallel(
    config: MegatronConfig,
    *,
    rank: int,
    world_size: int,
    init_method: str,
    device: Device,
    seed: int,
) -> Groups:
    """Join the trainer's process group and build the groups of the layout.

    Args:
        init_method: torch.distributed rendezvous, `tcp://host:port` or `file:///path`.
        seed: of Python, NumPy, torch and Megatron's per-rank generators.

    Raises:
        ValueError: the layout does not fit `world_size`, or the precision does not fit `device`.
    """
    _check_layout(config, world_size)
    check_precision(device, precision=config.precision, fp8=config.fp8)
    if device.kind == "cpu":
        cpu.install()
    dist.init_process_group(
        device.backend,
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=config.timeout_s),
    )
    return arrange_ranks(config, device=device, seed=seed)


def arrange_ranks(config: MegatronConfig, *, device: Device, seed: int) -> Groups:
    """The layout's groups over the ranks of the process group that this process has joined."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_parallel,
        pipeline_model_parallel_size=config.pipeline_parallel,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline,
        context_parallel_size=config.context_parallel,
        expert_model_parallel_size=config.expert_parallel,
        expert_tensor_parallel_size=config.etp,
        # A float is fine: it goes to timedelta(minutes=...).
        distributed_timeout_minutes=config.timeout_s / 60,
    )
    seed_everything(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return _groups(config, device)


def shutdown_parallel() -> None:
    """Leave all groups; the process may call `init_parallel` again."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _check_layout(config: MegatronConfig, world_size: int) -> None:
    if config.world_size != world_size:
        raise ValueError(
            f"megatron's TP {config.tensor_parallel} * PP {config.pipeline_parallel} * CP"
            f" {config.context_parallel} * DP {config.data_parallel} is {config.world_size}"
            f" ranks but {world_size} were started"
        )
    if config.stage_ranks % (config.etp * config.expert_parallel):
        raise ValueError(
            f"megatron's ETP {config.etp} * EP {config.expert_parallel} does not divide the"
            f" {config.stage_ranks} ranks of a pipeline stage, TP * CP * DP"
        )
    if config.sequence_parallel and config.tensor_parallel == 1:
        raise ValueError("megatron.sequence_parallel needs megatron.tensor_parallel > 1")
    if config.virtual_pipeline is not None and config.pipeline_parallel == 1:
        raise ValueError("megatron.virtual_pipeline needs megatron.pipeline_parallel > 1")


def _axis(group: dist.ProcessGroup) -> Axis:
    return Axis(rank=dist.get_rank(group), size=dist.get_world_size(group), group=group)


def _groups(config: MegatronConfig, device: Device) -> Groups:
    state = parallel_state
    return Groups(
        device=device,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp=_axis(state.get_tensor_model_parallel_group()),
        pp=_axis(state.get_pipeline_model_parallel_group()),
        vpp=config.virtual_pipeline or 1,
        cp=_axis(state.get_context_parallel_group()),
        dp=_axis(state.get_data_parallel_group()),
        dp_cp=_axis(state.get_data_parallel_group(with_context_parallel=True)),
        ep=_axis(state.get_expert_model_parallel_group()),
        expert_tp=_axis(state.get_expert_tensor_parallel_group()),
        expert_dp=_axis(state.get_expert_data_parallel_group()),
    )
