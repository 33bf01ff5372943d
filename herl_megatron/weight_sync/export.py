"""Write this rank's share of the current weights as safetensors shards."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from herl_megatron.files.os_errors import with_usual_mode
from herl_megatron.models.hf_folder import WrittenShards, shard_name
from herl_megatron.weight_sync.source import WeightSource


def write_stage(source: WeightSource, folder: str) -> WrittenShards | None:
    """Gather every bucket of this rank's stage and, on the sending rank, write one file for each.

    Collective over the ranks that have `source.takes_part`. Never more than one bucket is in
    memory. `models.hf_folder.finish_export` makes a model folder of what all stages wrote.
    """
    plan = source.plan()
    files: list[str] = []
    for bucket in plan:
        tensors = source.gather(bucket.index)
        if tensors is None:
            continue
        name = shard_name(bucket.index, len(plan))
        on_host = {key: tensor.cpu().contiguous() for key, tensor in tensors}
        with with_usual_mode(file := Path(folder) / name):  # a server may run under another user
            save_file(on_host, file, metadata={"format": "pt"})
        files.append(name)
    if not files:
        return None
    return WrittenShards(tuple(files), len(plan), plan[0].tensors[0].dtype)
