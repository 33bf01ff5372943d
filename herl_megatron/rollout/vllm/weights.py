"""The receiving half of the weight sync: a vLLM weight-transfer engine.

Buckets lie in shared memory or in memory of its own GPU (`weight_sync.transport_ipc`) and are read
in place.

vLLM drives it through its own calls (start_weight_update, update_weights once per bucket,
finish_weight_update). Its layer-wise reload rebuilds what was packed for the CPU's kernels, but is
silently wrong in cases that are mended here: a tied output layer and MoE experts keep their old
packed weights, a layer that came in part is filled with garbage, and tensors of a layer that is not
complete yet are kept as views of memory that the next bucket overwrites.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_processing,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS

from herl_megatron.engine import Bucket
from herl_megatron.rollout.vllm.tp_workers import end_with_engine, unlink_shared_memory
from herl_megatron.weight_sync import transport_ipc
from herl_megatron.weight_sync.transport import read_bucket

BACKEND = "herl_shared_memory"
WORKER_EXTENSION = "herl_megatron.rollout.vllm.weights.WorkerExtension"
_NAMES_SHOWN = 8


class WorkerExtension:
    """What vLLM's workers can be asked for beyond their own.

    Named to vLLM, so that worker processes import this module, which registers the backend.
    """

    def join_engine(self, engine_pid: int) -> None:
        """Leave nothing behind when the engine's process ends, however that happens."""
        end_with_engine(engine_pid)
        unlink_shared_memory()


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not followed
    """Nothing to agree on: every bucket says where it lies."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One bucket."""

    bucket: Bucket


class SharedMemoryWeights(
    WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]  # type: ignore[misc]
):
    """Loads whole-model updates from buckets of Hugging Face tensors, in any split and order."""

    model: Any  # a vLLM model offers more than torch's Module says
    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _buffers: transport_ipc.MappedBuckets | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Set every layer up to be loaded anew."""
        self._missing, self._fused = hf_names(self.model)
        self._known = frozenset(self._missing)
        for module in self.model.modules():
            # Left in place, vLLM keeps the kernel's packed experts instead of the new ones.
            if hasattr(module, "quant_method") and hasattr(module.quant_method, "moe_kernel"):
                module.quant_method.moe_kernel = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Load one bucket.

        Raises:
            ValueError: a tensor that the model does not have, or that came before.
        """
        for entry in update_info.bucket.tensors:
            for name in self._fused.get(entry.name, (entry.name,)):
                if name not in self._missing:
                    why = "came twice" if name in self._known else "is not in the model"
                    raise ValueError(f"weight update: tensor {entry.name!r} {why}")
                del self._missing[name]
        bucket = update_info.bucket
        in_gpu_memory = bucket.path in transport_ipc.PATHS
        read = self._mapped().read if in_gpu_memory else read_bucket
        self.model.load_weights(read(bucket))
        self._own_waiting_tensors()

    def finish_weight_update(self) -> None:
        """Finish every layer.

        Raises:
            RuntimeError: tensors are missing (their names).
        """
        if self._missing:
            shown = ", ".join(list(self._missing)[:_NAMES_SHOWN])
            more = ", ..." if len(self._missing) > _NAMES_SHOWN else ""
            raise RuntimeError(
                f"weight update is not complete: {len(self._missing)} of {len(self._known)} "
                f"tensors did not come: {shown}{more}"
            )
        finalize_layerwise_processing(self.model, self.model_config)
        _repack_tied_output_layer(self.model)

    def shutdown(self) -> None:
        """Let go of the trainer's buffers."""
        self._buffers = None

    def _mapped(self) -> transport_ipc.MappedBuckets:
        """Those of this worker's GPU, kept from update to update."""
        if self._buffers is None:
            self._buffers = transport_ipc.MappedBuckets(transport_ipc.CudaMemory(self.device))
        return self._buffers

    def _own_waiting_tensors(self) -> None:
        """Copy what vLLM keeps until a layer is complete: the bucket's file is about to change."""
        for module in self.model.modules():
            for _, call in get_layerwise_info(module).loaded_weights:
                for name, value in call.arguments.items():
                    if isinstance(value, torch.Tensor) and name != "param":
                        call.arguments[name] = value.clone()


def hf_names(model: Any) -> tuple[dict[str, None], dict[str, tuple[str, ...]]]:
    """Hugging Face names of every tensor that `model` needs, in the model's order; and, of those
    that are parts of a fused layer, the name under which they may come as one tensor.

    The inverse of vLLM's `load_weights`: fused layers are taken apart by the model's own tables,
    although some families have one tensor there (of gate and up projection).
    """
    names: dict[str, None] = {}
    whole: dict[str, tuple[str, ...]] = {}
    for full_name, _ in model.named_parameters():
        path, _, parameter = full_name.rpartition(".")
        parent, _, layer = path.rpartition(".")
        module = model.get_submodule(path)
        loaded, _ = get_layerwise_info(module).restore_metadata
        if parameter not in loaded and parameter not in SKIP_TENSORS:
            continue  # a scale that vLLM works out when it quantises
        if isinstance(module, RoutedExperts):
            fused_name = f"{module.layer_name}.{parameter}"
            for fused, single, *_ in module.get_expert_mapping():
                if fused in fused_name:
                    names[fused_name.replace(fused, single)] = None
        else:
            singles = model.packed_modules_mapping.get(layer, [layer])
            parts = tuple(
                ".".join(part for part in (parent, single, parameter) if part) for single in singles
            )
            names |= dict.fromkeys(parts)
            if len(parts) > 1:
                whole[full_name] = parts
    return names, whole


def _repack_tied_output_layer(model: Any) -> None:
    """Rebuild the packed matrix of an output layer that shares the embedding's storage."""
    embeddings: list[Any] = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    shared = {m.weight.data_ptr() for m in embeddings if not isinstance(m, ParallelLMHead)}
    for module in embeddings:
        if isinstance(module, ParallelLMHead) and module.weight.data_ptr() in shared:
            module.quant_method.process_weights_after_loading(module)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeights)
