"""The tuning script runs: on the CPU, with small sizes and no clock."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from penstock.kernels import triton_sampling, triton_thresholds
from scripts import tune_sampling
from scripts.graph_timing import Call


def test_every_kind_and_variant_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pretended_clock(calls: Sequence[Call]) -> float:
        calls[0]()
        return 2.0

    before = (triton_sampling.TILE_SIZE, triton_thresholds.SEARCH_BLOCK_SIZE)
    monkeypatch.setattr(tune_sampling, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(tune_sampling, "BATCHES", [(1, 900), (3, 900)])
    monkeypatch.setattr(tune_sampling, "TUNED_SIZES", [(2, 900)])
    monkeypatch.setattr(tune_sampling, "graph_microseconds", pretended_clock)
    tune_sampling.main()
    lines = capsys.readouterr().out.splitlines()
    num_variants = 2 * len(tune_sampling.SAMPLING_TILES) + len(tune_sampling.SEARCHES)
    assert len(lines) == 2 * len(tune_sampling.KINDS) + num_variants
    assert all(" us " in line and line.endswith("GB/s") for line in lines)
    assert before == (triton_sampling.TILE_SIZE, triton_thresholds.SEARCH_BLOCK_SIZE)
