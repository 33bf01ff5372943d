"""Models named as on the Hugging Face Hub, `owner/name` or `owner/name@revision`: the folder.

A folder of that very name comes first, then the local cache of Hugging Face, then the Hub itself,
unless `HF_HUB_OFFLINE` is set. Whether the Hub answers is known after a few seconds; where it does
not, the message says how to get the model by hand.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from herl_megatron.config.proxies import by_way_of
from herl_megatron.config.schema import ModelConfig

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,128}))?"
)
_FOLDERS = {"checkpoints", "configs", "data", "models", "outputs", "runs", "tmp"}
"""What nobody means as an owner on the Hub: a folder below it that is missing is a slip."""
_FEW_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
_WEIGHTS = ("*.safetensors",)
_ASKING_S = 5.0
"""Longest wait for the Hub's first answer, name resolution and all."""
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub in a folder of this machine. commit: the snapshot that it is."""

    name: str
    commit: str
    folder: Path

    @property
    def pinned(self) -> str:
        """`owner/name@commit`: names the same files wherever the Hub or a cache has them."""
        return f"{self.name}@{self.commit}"


def is_hub_name(text: str) -> bool:
    """Whether a value names a model on the Hub: it looks like one, and nothing here has that
    path."""
    if _NAME.fullmatch(text) is None or os.path.lexists(text):
        return False
    return text.partition("/")[0] not in _FOLDERS


def cached_model(text: str, *, weights: bool = True) -> HubModel | None:
    """The model of that name in the local cache; None where it, or a part of it, is missing.

    weights: whether its weights are needed; else configuration and tokenizer are enough.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = _split(text)
    try:
        # Its weights or not, the snapshot of a revision is one folder; `_whole` looks inside.
        folder = snapshot_download(
            name, revision=revision, local_files_only=True, allow_patterns=list(_FEW_FILES)
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return _whole(name, Path(folder), weights=weights)


def fetch_model(text: str, *, key: str, weights: bool = True) -> HubModel:
    """The model from the Hub, in the local cache afterwards.

    key: of the configuration or command line, for messages.

    Raises:
        ValueError: the Hub cannot be reached or may not be, has no such model, or wants a log-in.
    """
    from huggingface_hub import snapshot_download

    name, _ = _split(text)
    info = _ask(text, key=key)
    commit = str(info.sha)
    patterns = [*_FEW_FILES, *(_WEIGHTS if weights else ())]
    logger.info("fetching %s@%s from the Hugging Face Hub into its cache", name, commit[:12])
    try:
        folder = snapshot_download(name, revision=commit, allow_patterns=patterns)
    except Exception as error:  # whatever its HTTP client, file system or storage raises
        raise ValueError(_by_hand(text, key, f"fetching it failed ({_short(error)})")) from error
    model = _whole(name, Path(folder), weights=weights)
    if model is None:
        raise ValueError(
            f"{key}: {name} on the Hub has no config.json"
            + (" or no complete *.safetensors weights" if weights else "")
            + "; name a model in the format of transformers"
        )
    return model


def looked_up(model: ModelConfig, run: Path | None) -> str:
    """What of the Hub `model.path` has to be looked up as; empty where it is a folder.

    run: the folder of a run that is resumed: the commit that it began with is what it goes on with.
    """
    if is_hub_name(model.path):
        resumed = recorded(run, "model") if run is not None and "@" not in model.path else None
        begun = str((resumed or {}).get("hub") or "")
        return begun if begun.partition("@")[0] == model.path else model.path
    return model.hub if lies_in(model) and not os.path.isdir(model.path) else ""


def lies_in(model: ModelConfig) -> bool:
    """Whether `model.hub` is about `model.path`, which may have been set anew since."""
    name, _, commit = model.hub.partition("@")
    return bool(name and commit) and Path(model.path).name == commit


def recorded(run: Path, section: str) -> dict[str, Any] | None:
    """A section of a run's config.yaml; None where there is none."""
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return dict(values[section])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def local_folder(text: str, *, key: str, weights: bool = True) -> Path:
    """The folder of a model that a command line names: as it is, or by its name on the Hub.

    Raises:
        ValueError: as `fetch_model`.
    """
    if not is_hub_name(text):
        return Path(text)
    found = cached_model(text, weights=weights) or fetch_model(text, key=key, weights=weights)
    logger.info("%s: %s", found.pinned, found.folder)
    return found.folder


def _split(text: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(text)
    assert found is not None, f"{text!r} is no name on the Hub"
    return found["name"], found["revision"]


def _whole(name: str, folder: Path, *, weights: bool) -> HubModel | None:
    """None where files are missing; an interrupted download leaves such a folder."""
    if not (folder / "config.json").is_file():
        return None
    if weights and not _has_weights(folder):
        return None
    return HubModel(name, folder.name, folder.resolve())


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(path.is_file() for path in folder.glob("*.safetensors"))
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / file).is_file() for file in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _ask(text: str, *, key: str) -> ModelInfo:
    """What the Hub says about the model, within `_ASKING_S`."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = _split(text)
    if _told_offline():
        raise ValueError(_by_hand(text, key, "HF_HUB_OFFLINE is set, so the Hub is not asked"))
    found = _answer(lambda: HfApi().model_info(name, revision=revision, timeout=_ASKING_S))
    if found is None:
        late = f"the Hub did not answer within {_ASKING_S:g} s{by_way_of(constants.ENDPOINT)}"
        raise ValueError(_by_hand(text, key, late))
    if isinstance(found, GatedRepoError):
        raise ValueError(
            f"{key}: {name} wants a log-in: accept its terms on its page of the Hub, then"
            " `hf auth login`"
        ) from found
    if isinstance(found, RepositoryNotFoundError | RevisionNotFoundError):
        raise ValueError(
            f"{key}: {text!r} is neither a folder here (from {Path.cwd()}) nor a model on the"
            " Hugging Face Hub that one may read without logging in (`hf auth login`); mend the"
            " name"
        ) from found
    if isinstance(found, Exception):
        why = f"the Hub cannot be reached ({_short(found)}){by_way_of(constants.ENDPOINT)}"
        raise ValueError(_by_hand(text, key, why)) from found
    info: ModelInfo = found
    return info


def hub_answers() -> bool:
    """Whether the Hub can be reached, which takes `_ASKING_S` at most; not where it may not be."""
    from huggingface_hub import constants, get_session

    if _told_offline():
        return False
    found = _answer(lambda: get_session().head(constants.ENDPOINT, timeout=_ASKING_S))
    return found is not None and not isinstance(found, Exception)


def _told_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def _answer(ask: Callable[[], Any]) -> Any:
    """What `ask` returns or raises; None if that takes longer than `_ASKING_S`.

    In a thread, because looking up a host's name knows no time limit.
    """
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(ask())
        except Exception as error:  # who waits for it says what it means
            answer.append(error)

    asking = threading.Thread(target=run, daemon=True, name="ask the Hub")
    asking.start()
    asking.join(_ASKING_S)
    return answer[0] if answer else None


def _by_hand(text: str, key: str, why: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    name, revision = _split(text)
    at = f" --revision {revision}" if revision else ""
    folder = f"models/{name.partition('/')[2]}"
    return (
        f"{key}: {text!r} is no folder here (from {Path.cwd()}) and not whole in the cache of"
        f" Hugging Face ({HF_HUB_CACHE}), and {why}. Where there is network: hf download {name}{at}"
        f" --local-dir {folder}; then {_set(key, folder)}"
    )


def _set(key: str, folder: str) -> str:
    return f"give {key} {folder}" if key.startswith("--") else f"set {key}={folder}"


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
