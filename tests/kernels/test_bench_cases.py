"""What the kernels' benchmark compares: every kind of case, small, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts import bench_kernels
from scripts.attention_cases import decode_attention, prefill_attention
from scripts.bench_kernels import CASES, table_row
from scripts.graph_timing import CACHE_BYTES, num_copies
from scripts.kernel_cases import Case, add_norm_linear_silu_mul, add_rms_norm, linear, rms_norm, rope_and_cache, silu_mul
from scripts.sampling_cases import sample_tokens
from tests.kernels.comparing import assert_close

SMALL_CASES = [
    rms_norm(3, 40),
    add_rms_norm(3, 40),
    silu_mul(3, 40),
    rope_and_cache(5, 4, 2, 8, head_norm=False),
    rope_and_cache(5, 4, 2, 8, head_norm=True),
    linear(3, 20, 30),
    add_norm_linear_silu_mul(1, 20, 30),
    decode_attention(3, 37, 4, 2, 16),
    prefill_attention(37, 4, 2, 16),
    sample_tokens(3, 100, "greedy"),
]


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_both_sides_do_the_same(case: Case) -> None:
    calls = case.make(torch.device("cpu"))
    ours, torchs = (result if isinstance(result, tuple) else (result,) for result in (calls.ours(), calls.torch()))
    for actual, expected in zip(ours, torchs, strict=True):
        assert isinstance(actual, Tensor)
        if actual.is_floating_point():
            assert_close(actual, expected, factor=4.0)
        else:
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("how", ["random", "filtered"])
def test_both_sides_draw_a_token_per_row(how: str) -> None:
    calls = sample_tokens(3, 100, how).make(torch.device("cpu"))
    for tokens in (calls.ours(), calls.torch()):
        assert isinstance(tokens, Tensor)
        assert tokens.shape == (3,)
        assert ((tokens >= 0) & (tokens < 100)).all()


def test_cases_are_named_once_and_fit_a_card() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        copies = num_copies(case.footprint_bytes)
        assert case.footprint_bytes * copies < 8 << 30
        assert case.footprint_bytes * copies >= CACHE_BYTES or copies == 64


def test_a_row_of_the_table() -> None:
    line = {"case": "linear", "microseconds": 2.0, "torch_microseconds": 3.0, "unit": "FLOP", "per_second": 5e14}
    row = table_row({**line, "ceiling": "matmul", "ceiling_share": 0.65})
    assert "500.0 TFLOP/s" in row
    assert "65.0% of matmul" in row
    assert "1.50 x torch" in row
    assert "out of memory" in table_row({"case": "linear", "error": "OutOfMemoryError: out of memory\nmore"})


@pytest.fixture
def bench_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small cases, and each call takes two microseconds."""

    def pretended_microseconds(calls: Sequence[Callable[[], object]]) -> float:
        for call in calls:
            call()
        return 2.0

    monkeypatch.setattr(bench_kernels, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(bench_kernels, "CASES", [add_rms_norm(3, 40), silu_mul(3, 40)])
    monkeypatch.setattr(bench_kernels, "PRODUCT_SHAPES", {"small": [(20, 30), (30, 20)]})
    monkeypatch.setattr(bench_kernels, "graph_microseconds", pretended_microseconds)
    monkeypatch.setattr(bench_kernels, "measure_ceilings", lambda: {"read": 1e12, "copy": 1e12, "matmul": 1e15})
    monkeypatch.setattr(bench_kernels, "versions", lambda: {"device": "CPU"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("bench_on_cpu")
@pytest.mark.parametrize("flags", [[], ["--variants"]], ids=["cases", "variants"])
def test_every_case_is_a_line(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr("sys.argv", ["bench_kernels", "--out", str(out), "--only", "norm", *flags])
    assert bench_kernels.main() == 0
    head, *lines = map(json.loads, out.read_text().splitlines())
    assert head["device"] == "CPU"
    assert {line["case"] for line in lines} == {"add_rms_norm 3x40"}
    assert lines[0]["per_second"] == 4 * 2 * 3 * 40 / 2e-6
    if flags:
        assert len(lines) == sum("norm" in variant.cases for variant in bench_kernels.VARIANTS)


@pytest.mark.usefixtures("bench_on_cpu")
def test_a_case_that_fails_is_a_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr("sys.argv", ["bench_kernels", "--out", str(out)])
    monkeypatch.setattr(bench_kernels, "graph_microseconds", lambda calls: 1 // 0)
    assert bench_kernels.main() == 1
    assert [("error" in json.loads(line)) for line in out.read_text().splitlines()] == [False, True, True]


@pytest.mark.usefixtures("bench_on_cpu")
def test_the_table_of_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "products.json"
    monkeypatch.setattr("sys.argv", ["bench_kernels", "--products-table", str(table)])
    assert bench_kernels.main() == 0
    written = json.loads(table.read_text())
    assert [(row["in"], row["out"]) for row in written["products"]] == [(20, 30), (30, 20)]
    assert written["products"][0]["microseconds"] == {str(size): 2.0 for size in bench_kernels.TABLE_TOKENS}
