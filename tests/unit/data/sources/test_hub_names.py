"""A data set by its name on the Hub: where the Hub does not answer, nobody asks it for long."""

from __future__ import annotations

from typing import Any

import datasets
import huggingface_hub
import pytest

from herl_megatron.data.sources import read
from herl_megatron.data.sources.read import Input, read_rows


@pytest.mark.parametrize("answers", [True, False])
def test_it_looks_into_its_cache_alone(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    seen: list[list[bool]] = []

    def load(*_: Any) -> dict[str, list[dict[str, str]]]:
        seen.append([place.HF_HUB_OFFLINE for place in places])
        return {"train": [{"prompt": "x"}]}

    for place in places:
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(read, "hub_answers", lambda: answers)
    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = read_rows(Input("owner/rows"))
    assert row.number == 1
    assert seen == [[not answers] * 2]
    assert [place.HF_HUB_OFFLINE for place in places] == [False, False]


def test_without_network_the_download_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(read, "hub_answers", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    said = (
        "hf download --repo-type dataset owner/rows --local-dir downloads/rows; .*"
        " the same command --input downloads/rows, or a file in it"
    )
    with pytest.raises(ValueError, match=said):
        read_rows(Input("owner/rows"))
