"""Models by their name on the Hub: folder first, then the cache, then the Hub, within seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from herl_megatron.config import hub
from herl_megatron.config.schema import ModelConfig
from tests.unit.config.hub_cache import COMMIT, fill_cache, use_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return use_cache(tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", True),
        ("Qwen/Qwen2.5-0.5B-Instruct@main", True),
        ("runs/quickstart/policy", False),
        ("models/Qwen2.5-7B-Instruct", False),
        ("/models/Qwen", False),
        ("./a/b", False),
        ("gpt2", False),
        ("", False),
    ],
)
def test_what_looks_like_a_name(cache: Path, text: str, expected: bool) -> None:
    assert hub.is_hub_name(text) is expected


def test_a_folder_of_that_name_wins(cache: Path) -> None:
    fill_cache(cache, "org/tiny")
    assert hub.is_hub_name("org/tiny")
    Path("org/tiny").mkdir(parents=True)
    assert not hub.is_hub_name("org/tiny")
    assert hub.local_folder("org/tiny", key="--hf") == Path("org/tiny")
    assert hub.looked_up(ModelConfig(path="org/tiny"), None) == ""


def test_found_in_the_cache_at_its_commit(cache: Path) -> None:
    folder = fill_cache(cache, "org/tiny")
    found = hub.HubModel("org/tiny", COMMIT, folder)
    for text in ("org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"):
        assert hub.cached_model(text) == found
    assert found.pinned == f"org/tiny@{COMMIT}"
    assert hub.local_folder("org/tiny", key="--hf") == folder
    assert hub.cached_model("org/other") is None
    assert hub.cached_model("org/tiny@v2") is None


def test_what_an_interrupted_download_left_is_not_the_model(cache: Path) -> None:
    folder = fill_cache(cache, "org/tiny")
    (folder / "model.safetensors").unlink()
    assert hub.cached_model("org/tiny") is None
    assert hub.cached_model("org/tiny", weights=False) is not None  # for a tokenizer it will do
    parts = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(parts))
    (folder / "one.safetensors").touch()
    assert hub.cached_model("org/tiny") is None
    (folder / "two.safetensors").touch()
    assert hub.cached_model("org/tiny") is not None
    (folder / "config.json").unlink()
    assert hub.cached_model("org/tiny", weights=False) is None


def test_offline_the_hub_is_not_asked_and_the_way_by_hand_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError) as caught:
        hub.fetch_model("org/tiny@v2", key="model.path")
    said = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in said and str(cache) in said
    assert said.endswith(
        "hf download org/tiny --revision v2 --local-dir models/tiny; then set"
        " model.path=models/tiny"
    )
    with pytest.raises(ValueError, match=r"then give --hf models/tiny$"):
        hub.local_folder("org/tiny", key="--hf")


def test_a_hub_that_does_not_answer_costs_seconds(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "_ASKING_S", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(20))
    start = time.monotonic()
    with pytest.raises(ValueError, match="did not answer within 0.2 s. Where there is network: hf"):
        hub.fetch_model("org/tiny", key="model.path")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route\nto it"), r"cannot be reached \(ConnectionError: no route\)"),
        (
            errors.RepositoryNotFoundError,
            r"neither a folder here \(from .*work\) nor a model on the",
        ),
        (errors.GatedRepoError, "wants a log-in: .*hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Any, said: str
) -> None:
    def ask(*_: Any, **__: Any) -> None:
        if isinstance(error, type):
            raise error(
                "refused", response=httpx.Response(404, request=httpx.Request("GET", "http://hub"))
            )
        raise error

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    with pytest.raises(ValueError, match=said):
        hub.fetch_model("org/tiny", key="model.path")


def test_it_is_fetched_at_the_commit_that_the_hub_names(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name} | options)
        return str(fill_cache(cache, name))

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=COMMIT)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = hub.fetch_model("org/tiny", key="model.path")
    assert (model.pinned, asked[0]["revision"]) == (f"org/tiny@{COMMIT}", COMMIT)
    assert "*.safetensors" in asked[0]["allow_patterns"]
    hub.fetch_model("org/tiny", key="--tokenizer", weights=False)
    assert "*.safetensors" not in asked[1]["allow_patterns"]


def test_a_resumed_run_goes_on_with_the_commit_that_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {{hub: org/tiny@{COMMIT}}}\n")
    named = ModelConfig(path="org/tiny")
    assert hub.looked_up(named, None) == "org/tiny"
    assert hub.looked_up(named, tmp_path) == f"org/tiny@{COMMIT}"
    assert hub.looked_up(named, tmp_path / "no-run") == "org/tiny"
    assert hub.looked_up(ModelConfig(path="org/tiny@v2"), tmp_path) == "org/tiny@v2"
    assert hub.looked_up(ModelConfig(path="org/other"), tmp_path) == "org/other"


def test_a_folder_that_is_gone_is_looked_for_again(tmp_path: Path) -> None:
    gone = str(tmp_path / "snapshots" / COMMIT)
    pinned = f"org/tiny@{COMMIT}"
    assert hub.looked_up(ModelConfig(path=gone, hub=pinned), None) == pinned
    # `model.path` was given anew: what `hub` says is about another folder.
    assert hub.looked_up(ModelConfig(path=str(tmp_path / "mine"), hub=pinned), None) == ""
    Path(gone).mkdir(parents=True)
    assert hub.looked_up(ModelConfig(path=gone, hub=pinned), None) == ""


def test_whether_the_hub_answers_is_known_in_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, head: Callable[[], Any]) -> None:
            self._head = head

        def head(self, *_: Any, **__: Any) -> Any:
            return self._head()

    def refuse() -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "_ASKING_S", 0.2)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    for head, expected in (
        (lambda: httpx.Response(200), True),
        (refuse, False),
        (lambda: time.sleep(20), False),
    ):
        monkeypatch.setattr(huggingface_hub, "get_session", lambda head=head: Session(head))
        assert hub.hub_answers() is expected
    monkeypatch.setattr(
        huggingface_hub, "get_session", lambda: Session(lambda: httpx.Response(200))
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.hub_answers()
