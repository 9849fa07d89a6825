"""Rotation, head norms and the write into the paged cache, against float64 and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.kernels import ops
from tests.kernels.comparing import DEVICES, DTYPES, assert_close, random_tensor

pytestmark = pytest.mark.usefixtures("poisoned_empty")
NUM_BLOCKS, MAX_POSITIONS = 9, 50


def angles(head_dim: int) -> Tensor:
    """float64 [MAX_POSITIONS, head_dim / 2]."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return torch.arange(MAX_POSITIONS, dtype=torch.float64)[:, None] * frequencies


def naive_rotation(x: Tensor, positions: Tensor) -> Tensor:
    """Every pair (i, i + D / 2) as a complex number, times e^(i angle)."""
    half = x.shape[-1] // 2
    wide = x.double().cpu()
    turned = torch.complex(wide[..., :half], wide[..., half:]) * torch.exp(1j * angles(2 * half)[positions.cpu()])[:, None]
    return torch.cat((turned.real, turned.imag), -1)


def naive_head_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + 1e-6) * weight.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "head-norm"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "block_size"), [(4, 2, 16, 4), (3, 3, 2, 1), (7, 1, 10, 16)])
def test_rope_and_cache(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, with_norm: bool, dtype: torch.dtype, device: str
) -> None:
    num_tokens = 8
    q = random_tensor(num_tokens, num_heads, head_dim, dtype=dtype, device=device)
    fused = random_tensor(num_tokens, 2 * num_kv_heads, head_dim, dtype=dtype, device=device)
    k, v = torch.split(fused, num_kv_heads, dim=1)  # views with gaps, as they come out of the fused projection
    positions = torch.tensor([0, 49, 3, 3, 17, 1, 30, 8], device=device)
    cos_sin = torch.cat((angles(head_dim).cos(), angles(head_dim).sin()), -1).float().to(device)
    caches = ops.make_kv_cache(NUM_BLOCKS, block_size, num_kv_heads, head_dim, dtype, torch.device(device))
    assert caches[0].numel() == NUM_BLOCKS * block_size * num_kv_heads * head_dim
    for cache in caches:
        cache.fill_(7.0)
    kv_slots = torch.randperm(NUM_BLOCKS * block_size)[:num_tokens].to(device)
    q_weight, k_weight = (random_tensor(head_dim, dtype=dtype, device=device) for _ in range(2))
    weights = (q_weight, k_weight, 1e-6) if with_norm else ()

    rotated = ops.rope_and_cache(q, k, v, positions, cos_sin, *caches, kv_slots, *weights)

    expected_k = naive_head_norm(k, k_weight) if with_norm else k.double()
    expected_q = naive_head_norm(q, q_weight) if with_norm else q.double()
    assert rotated.dtype == dtype
    assert_close(rotated, naive_rotation(expected_q, positions), factor=2.0)
    for cache, expected in zip(caches, (naive_rotation(expected_k, positions), v.double().cpu()), strict=True):
        by_slot = cache.transpose(1, 2).reshape(-1, num_kv_heads, head_dim)
        assert_close(by_slot[kv_slots], expected, factor=2.0)
        untouched = torch.ones(len(by_slot), dtype=torch.bool, device=device)
        untouched[kv_slots] = False
        assert (by_slot[untouched] == 7.0).all()


def test_rotated_products_depend_on_distance_alone() -> None:
    head_dim = 8
    cos_sin = torch.cat((angles(head_dim).cos(), angles(head_dim).sin()), -1).float()
    q, k = random_tensor(1, 1, head_dim), random_tensor(1, 1, head_dim)

    def product(query_position: int, key_position: int) -> float:
        caches = ops.make_kv_cache(1, 1, 1, head_dim, torch.float32, torch.device("cpu"))
        rotated = []
        for x, position in ((q, query_position), (k, key_position)):
            place = torch.tensor([position])
            rotated.append(ops.rope_and_cache(x, x, x, place, cos_sin, *caches, torch.tensor([0])))
        return float((rotated[0] * rotated[1]).sum())

    assert product(11, 4) == pytest.approx(product(40, 33), abs=1e-5)
    assert product(11, 4) != pytest.approx(product(11, 5), abs=1e-3)
