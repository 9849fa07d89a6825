"""The layers' Triton kernels against their twins, and what they take of a GPU. Everything not to be read is NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

from penstock.kernels import reference_layers, triton_norms, triton_rope, triton_swiglu
from tests.kernels.comparing import TRITON_DEVICE, TRITON_DTYPES, assert_close, random_tensor
from tests.kernels.compiling import check_launches

pytestmark = pytest.mark.usefixtures("poisoned_empty")
EPS = 1e-6
INTERPRETED_DTYPES = [torch.float32, torch.float16]
SHAPES = [
    *((shape, dtype) for shape in [(1, 1), (3, 7), (5, 123), (2, 1024)] for dtype in INTERPRETED_DTYPES),
    *(
        pytest.param(shape, dtype, marks=pytest.mark.gpu)
        for shape, dtype in [
            ((5, 123), torch.bfloat16),
            ((1, 4096), torch.bfloat16),
            ((8192, 2048), torch.bfloat16),
            ((300, 8192), torch.bfloat16),
            ((300, 8192), torch.float32),
            ((17, 2880), torch.bfloat16),
            ((17, 2880), torch.float16),
            ((1, 16384), torch.float32),
        ]
    ),
]


def rows_in_nan(num_rows: int, size: int, dtype: torch.dtype) -> Tensor:
    """Random rows, a view of a wider tensor whose other columns are NaN."""
    wide = torch.full((num_rows, size + 24), torch.nan, dtype=dtype, device=TRITON_DEVICE)
    rows = wide[:, 8 : 8 + size]
    rows.copy_(random_tensor(num_rows, size, dtype=dtype, device=TRITON_DEVICE) * 3)
    return rows


@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_norms_equal_their_twins(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual = rows_in_nan(*shape, dtype), rows_in_nan(*shape, dtype)
    weight = random_tensor(shape[1], dtype=dtype, device=TRITON_DEVICE)
    normed = triton_norms.rms_norm(x, weight, EPS)
    assert normed.dtype == dtype
    assert_close(normed, reference_layers.rms_norm(x.float(), weight.float(), EPS), factor=2.0)

    normed, new_residual = triton_norms.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(new_residual, x + residual)
    assert_close(normed, reference_layers.rms_norm(new_residual.float(), weight.float(), EPS), factor=2.0)


def test_a_norm_of_more_dimensions_goes_over_the_last() -> None:
    x, weight = random_tensor(2, 3, 40, device=TRITON_DEVICE), random_tensor(40, device=TRITON_DEVICE)
    assert_close(triton_norms.rms_norm(x, weight, EPS), reference_layers.rms_norm(x, weight, EPS))


def test_a_row_is_normed_alike_in_any_batch() -> None:
    x, residual = (random_tensor(9, 2048, dtype=torch.bfloat16, device=TRITON_DEVICE) for _ in range(2))
    weight = random_tensor(2048, dtype=torch.bfloat16, device=TRITON_DEVICE)
    together, _ = triton_norms.add_rms_norm(x, residual, weight, EPS)
    alone, _ = triton_norms.add_rms_norm(x[4:5], residual[4:5], weight, EPS)
    assert torch.equal(together[4:5], alone)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_silu_mul_equals_its_twin(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = rows_in_nan(shape[0], 2 * shape[1], dtype)
    product = triton_swiglu.silu_mul(gate_up)
    assert product.dtype == dtype
    assert_close(product, reference_layers.silu_mul(gate_up.float()), factor=2.0)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
def test_silu_mul_of_extreme_gates(dtype: torch.dtype) -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, 0.0, 90.0, 1e4]], dtype=dtype, device=TRITON_DEVICE)
    gate_up = torch.cat((gate, torch.ones_like(gate)), 1)
    with numpy.errstate(over="ignore"):  # the interpreter's exp of large numbers is infinite too, but warns
        torch.testing.assert_close(triton_swiglu.silu_mul(gate_up), reference_layers.silu_mul(gate_up))


Rope = Callable[..., Tensor]


def rope_case(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, with_norm: bool
) -> Callable[[Rope, torch.dtype], tuple[Tensor, Tensor, Tensor]]:
    """A function that applies an implementation to the case, in a dtype: (rotated q, k cache, v cache).

    Every third token is padding, at a position beyond the table.
    """
    num_slots, max_positions = num_tokens + block_size, 37
    fused = rows_in_nan(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype)
    weights = [random_tensor(head_dim, dtype=dtype, device=TRITON_DEVICE) for _ in range(2)]
    positions = torch.randint(max_positions, (num_tokens,))
    num_blocks = -(-num_slots // block_size)
    kv_slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    kv_slots[2::3] = -1
    positions[2::3] = 2**40
    angles = torch.rand(max_positions, head_dim // 2, device=TRITON_DEVICE) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)

    def apply(rope_and_cache: Rope, in_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        heads = (fused if in_dtype == dtype else fused.to(in_dtype)).view(num_tokens, -1, head_dim)
        q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], 1)
        caches = [
            torch.full((num_blocks, num_kv_heads, block_size, head_dim), 7.0, dtype=in_dtype, device=TRITON_DEVICE)
            for _ in range(2)
        ]
        norms = [weight.to(in_dtype) if with_norm else None for weight in weights]
        places = positions.to(TRITON_DEVICE), cos_sin, *caches, kv_slots.to(TRITON_DEVICE)
        return rope_and_cache(q, k, v, *places, *norms, EPS), caches[0], caches[1]

    return apply


ROPE_SHAPES = [
    *(
        (shape, dtype)
        for shape in [(4, 4, 2, 16, 4), (3, 3, 3, 2, 1), (7, 9, 1, 10, 16), (4, 2, 1, 96, 16), (3, 17, 10, 64, 32)]
        for dtype in INTERPRETED_DTYPES
    ),
    *(
        pytest.param(shape, dtype, marks=pytest.mark.gpu)
        for shape, dtype in [
            ((7, 9, 1, 10, 16), torch.bfloat16),
            ((1, 32, 8, 128, 16), torch.bfloat16),
            ((4099, 32, 8, 128, 16), torch.bfloat16),
            ((4099, 32, 8, 128, 16), torch.float32),
            ((513, 32, 8, 64, 64), torch.bfloat16),
            ((513, 32, 8, 64, 64), torch.float16),
            ((129, 16, 8, 256, 32), torch.bfloat16),
            ((129, 24, 24, 96, 16), torch.bfloat16),
        ]
    ),
]


@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "head-norm"])
@pytest.mark.parametrize(("shape", "dtype"), ROPE_SHAPES, ids=str)
def test_rope_and_cache_equals_its_twin(shape: tuple[int, int, int, int, int], with_norm: bool, dtype: torch.dtype) -> None:
    apply = rope_case(*shape, dtype, with_norm)
    rotated, *caches = apply(triton_rope.rope_and_cache, dtype)
    expected, *expected_caches = apply(reference_layers.rope_and_cache, torch.float32)
    assert rotated.dtype == dtype
    assert rotated.is_contiguous()
    assert_close(rotated, expected, factor=3.0)
    for cache, expected_cache in zip(caches, expected_caches, strict=True):
        written = (expected_cache != 7.0).any(3)
        assert torch.equal((cache != 7.0).any(3), written)
        assert_close(cache[written], expected_cache[written], factor=3.0)


def test_all_padding_writes_nothing() -> None:
    q = random_tensor(2, 2, 8, device=TRITON_DEVICE)
    nowhere = torch.full((2,), -1, device=TRITON_DEVICE)
    cos_sin = torch.zeros(1, 8, device=TRITON_DEVICE)
    implementations: list[Rope] = [triton_rope.rope_and_cache, reference_layers.rope_and_cache]
    for implementation in implementations:
        caches = [torch.full((1, 2, 4, 8), 7.0, device=TRITON_DEVICE) for _ in range(2)]
        implementation(q, q, q, nowhere, cos_sin, *caches, nowhere, None, None, 0.0)
        assert all((cache == 7.0).all() for cache in caches)


def test_no_tokens_no_launch() -> None:
    empty, weight = torch.ones(0, 16, device=TRITON_DEVICE), torch.ones(16, device=TRITON_DEVICE)
    assert triton_norms.rms_norm(empty, weight, EPS).shape == (0, 16)
    assert triton_swiglu.silu_mul(empty).shape == (0, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 33, 3000])
def test_kernels_that_overlap_compute_what_they_compute_alone(num_tokens: int) -> None:
    x, residual = (random_tensor(num_tokens, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    weight = random_tensor(4096, dtype=torch.bfloat16, device="cuda")
    places = torch.arange(num_tokens, device="cuda")
    angles = torch.rand(num_tokens, 64, device="cuda") * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    caches = torch.zeros(2, num_tokens // 16 + 1, 8, 16, 128, dtype=torch.bfloat16, device="cuda")

    def chain(between: Callable[[], object]) -> tuple[Tensor, Tensor]:
        """Each kernel reads what the one before wrote, and writes where an earlier one read: memory is freed on the way."""
        rotated, added = x, residual
        for _ in range(50):
            normed, added = triton_norms.add_rms_norm(rotated, added, weight, EPS)
            between()
            q = normed.view(num_tokens, 32, 128)
            k, v = q[:, :8], q[:, 8:16]
            rotated = triton_rope.rope_and_cache(
                q, k, v, places, cos_sin, caches[0], caches[1], places, None, None, EPS
            ).flatten(1)
            between()
        return rotated, added

    expected = *chain(torch.cuda.synchronize), caches.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = *chain(lambda: None), caches
    for _ in range(5):
        for tensor in captured:
            tensor.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        for actual, wanted in zip(captured, expected, strict=True):
            written = wanted != 0
            assert torch.equal(actual[written], wanted[written])
    assert torch.equal(chain(lambda: None)[0], expected[0])


def launch_everything() -> None:
    def absent(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for size in (1024, 2880, 4096, 8192):
        triton_norms.rms_norm(absent(3, size), absent(size), EPS)
        triton_norms.add_rms_norm(absent(3, size), absent(3, size), absent(size), EPS)
        triton_swiglu.silu_mul(absent(3, 2 * size))
    places = absent(3, dtype=torch.int64)
    for num_heads, num_kv_heads, head_dim in ((32, 8, 128), (32, 8, 64), (24, 24, 96), (16, 1, 256)):
        fused = absent(3, num_heads + 2 * num_kv_heads, head_dim)
        q, k, v = torch.split(fused, [num_heads, num_kv_heads, num_kv_heads], 1)
        cache = absent(9, num_kv_heads, 16, head_dim)
        for weight in (None, absent(head_dim)):
            cos_sin = absent(64, head_dim, dtype=torch.float32)
            triton_rope.rope_and_cache(q, k, v, places, cos_sin, cache, cache, places, weight, weight, EPS)


def test_they_compile_for_every_architecture() -> None:
    for launch in check_launches(launch_everything):
        assert ("griddepcontrol.wait" in launch.ptx) == (launch.arch >= 90), launch.kernel
        assert "global.v4" in launch.ptx, f"{launch.kernel} has no access of 16 bytes"
        assert launch.shared_bytes == 0 or "_rms_norm" in launch.kernel, f"{launch.kernel} exchanges values between threads"
        assert launch.registers * launch.num_warps * 32 * 2 <= 65536, f"{launch.kernel} fits a multiprocessor only once"
