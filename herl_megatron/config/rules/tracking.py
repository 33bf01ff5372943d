"""Rules of section `tracking`: what a tracker needs is there before anything expensive starts."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from herl_megatron.config.schema import TrackingConfig

_WANDB = "https://api.wandb.ai"


def start_problems(tracking: TrackingConfig) -> Iterator[str]:
    """Packages and keys that are missing; asks no server."""
    if tracking.wandb != "off":
        if not importlib.util.find_spec("wandb"):
            yield (
                f"tracking.wandb is {tracking.wandb!r} but the package wandb is not installed: pip"
                " install wandb, or set it to 'off'"
            )
        elif tracking.wandb == "online" and not _has_wandb_key():
            yield (
                "tracking.wandb is 'online' but there is no key: set WANDB_API_KEY, run `wandb"
                " login`, or use 'offline'"
            )
    address = urlsplit(tracking.mlflow)
    if address.username or address.password:  # said without its value: it would be saved too
        yield (
            "tracking.mlflow holds a user or password, which every run folder would show; leave"
            " them out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    elif tracking.mlflow and not importlib.util.find_spec("mlflow"):
        yield (
            f"tracking.mlflow is {tracking.mlflow!r} but the package mlflow is not installed: pip"
            " install mlflow-skinny, or leave it empty"
        )


def _has_wandb_key() -> bool:
    """In the environment, or where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _WANDB).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
