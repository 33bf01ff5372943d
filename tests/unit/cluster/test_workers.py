"""Where the trainer's ranks meet."""

from __future__ import annotations

import errno
import socket

import pytest
import torch.distributed as dist

from herl_megatron.cluster.nodes import tcp_url
from herl_megatron.cluster.workers import TrainerRank


def test_the_port_of_the_process_group_is_held_until_the_ranks_meet() -> None:
    worker = TrainerRank()
    host, port = worker.address()
    with socket.socket() as other, pytest.raises(OSError) as refused:
        other.bind((host, port))
        other.listen()
    assert refused.value.errno == errno.EADDRINUSE
    dist.init_process_group("gloo", init_method=tcp_url((host, port)), rank=0, world_size=1)
    dist.destroy_process_group()
