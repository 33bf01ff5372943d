"""Imported once by the harness's server process, so that every rank is forked with it loaded."""

from __future__ import annotations

import warnings

warnings.filterwarnings("ignore")  # Megatron-Core tells of Apex and Transformer Engine being absent

import herl_megatron.megatron.lean_import  # noqa: E402, F401  # isort: skip (before megatron)
import transformers  # noqa: E402, F401

import herl_megatron.megatron.load  # noqa: E402, F401
import herl_megatron.megatron.model  # noqa: E402, F401
import herl_megatron.megatron.parallel  # noqa: E402, F401
