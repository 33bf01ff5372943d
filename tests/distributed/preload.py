"""Imported once by the harness's server process, so that every rank is forked with it loaded.

What a case imports only as it runs costs each of its ranks most of a second, so all that a rank of
the product uses stands here, and the transformers modules that reading a configuration imports.
"""

from __future__ import annotations

import warnings

warnings.filterwarnings("ignore")  # Megatron-Core tells of Apex and Transformer Engine being absent

import herl_megatron.megatron.lean_import  # noqa: E402, F401  # isort: skip (before megatron)
import transformers  # noqa: E402, F401
from transformers.models.auto import modeling_auto  # noqa: E402, F401

import herl_megatron.megatron.actor  # noqa: E402, F401
import herl_megatron.megatron.checkpoint  # noqa: E402, F401
import herl_megatron.megatron.convert.conversion  # noqa: E402, F401
import herl_megatron.megatron.reference  # noqa: E402, F401
import herl_megatron.weight_sync.export  # noqa: E402, F401
import tests.distributed.tiny_models  # noqa: E402, F401
import tests.distributed.train_case  # noqa: E402, F401
