"""Peaks of memory belong to the phase in which they were held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from herl_megatron.observability import peaks as module
from herl_megatron.observability.peaks import Peaks, merge_peaks, take_peak_resident

MIB = 1 << 20


def test_each_phase_has_its_own_peak_and_the_rest_is_other() -> None:
    host, device = iter([1, 5, 2, 9, 3, 4, 1]), iter([0, 7, 0, 6, 8, 1, 0])
    peaks = Peaks(lambda: next(device), lambda: next(host))
    with peaks.phase("log-probs"):
        pass
    with pytest.raises(ZeroDivisionError), peaks.phase("train step"):
        raise ZeroDivisionError
    assert peaks.take() == {"other": (3, 8), "log-probs": (5, 7), "train step": (9, 6)}
    with peaks.phase("log-probs"):
        pass
    assert list(host) == [] and list(device) == []


def test_of_several_ranks_the_most() -> None:
    ranks = [{"a": (1, 5), "b": (2, 2)}, {"a": (3, 4)}]
    assert merge_peaks(ranks) == {"a": (3, 5), "b": (2, 2)}
    assert merge_peaks([]) == {}


def test_a_peak_is_seen_after_it_is_over_and_once() -> None:
    take_peak_resident()
    before = take_peak_resident()
    block = np.ones(200 * MIB, np.uint8)
    del block
    high = take_peak_resident()
    assert high - before > 150 * MIB
    assert high - take_peak_resident() > 150 * MIB


def test_without_the_kernels_record_it_is_what_is_held_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CLEAR", tmp_path / "none" / "clear_refs")  # a read-only /proc
    assert 10 * MIB < take_peak_resident() < 64 << 30
