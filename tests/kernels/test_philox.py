"""The noise: known answers of Philox, the layout of counters and keys, the shape of the distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from penstock.kernels import reference_sampling
from tests.kernels.comparing import DEVICES

# From Random123's kat_vectors: counter, key, result of philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
MASK = 0xFFFFFFFF


def plain_philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 on Python's integers, as in the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def plain_gumbel(seed: int, position: int, token_id: int) -> float:
    word = plain_philox((token_id // 4, position, 0, 0), (seed & MASK, seed >> 32))[token_id % 4]
    uniform = torch.tensor(word, dtype=torch.float32).add(0.5).mul(2.0**-32).item()
    return -math.log(-math.log1p(-min(uniform, 1 - 2.0**-24)))


def tensors(*words: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([word]) for word in words)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], result: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = tensors(*counter)
    k0, k1 = tensors(*key)
    assert tuple(int(word) for word in reference_sampling.philox((c0, c1, c2, c3), (k0, k1))) == result
    assert plain_philox(counter, key) == result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [1, 4, 307])
def test_noise_is_keyed_by_seed_position_and_token(vocab_size: int, device: str) -> None:
    seeds = [0, 1, 2**32 + 1, 2**63 - 1, 1]
    positions = [0, 7, 7, 2**32 - 1, 8]
    noise = reference_sampling.gumbel_noise(
        torch.tensor(seeds, device=device), torch.tensor(positions, device=device), vocab_size
    )
    assert noise.dtype == torch.float32
    expected = [
        [plain_gumbel(seed, position, i) for i in range(vocab_size)] for seed, position in zip(seeds, positions, strict=True)
    ]
    torch.testing.assert_close(noise.cpu().double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=2e-6)
    assert len({tuple(row) for row in noise.tolist()}) == len(seeds)


def test_noise_is_finite_for_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    words = tuple(torch.tensor([[word]]) for word in (0, 1, MASK, MASK - 1))
    monkeypatch.setattr(reference_sampling, "philox", lambda counters, keys: words)
    noise = reference_sampling.gumbel_noise(torch.tensor([0]), torch.tensor([0]), 4)
    assert torch.isfinite(noise).all()
    assert noise[0].tolist() == pytest.approx([33 * math.log(2), 33 * math.log(2) - math.log(3), -2.81, -2.81], abs=0.01)


def test_noise_has_the_gumbel_distribution() -> None:
    noise = reference_sampling.gumbel_noise(torch.arange(40), torch.arange(40) * 3, 5000).flatten().double().sort().values
    num_samples = len(noise)
    expected = torch.exp(-torch.exp(-noise))
    steps = torch.arange(num_samples, dtype=torch.float64)
    distance = torch.maximum((expected - steps / num_samples).abs(), (expected - (steps + 1) / num_samples).abs()).max()
    assert distance < 1.63 / math.sqrt(num_samples)  # Kolmogorov-Smirnov at the 1% level


def test_noise_of_neighbouring_positions_and_seeds_is_unrelated() -> None:
    rows = reference_sampling.gumbel_noise(torch.tensor([5, 5, 6, 5 + 2**32]), torch.tensor([3, 4, 3, 3]), 20_000)
    correlation = torch.corrcoef(rows) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(20_000)


@pytest.mark.gpu
def test_triton_counts_and_keys_alike() -> None:
    from tests.kernels.triton_philox import triton_words

    seed, position, num_quads = 2**40 + 12345, 77, 100
    quads = torch.arange(num_quads).unsqueeze(0)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    keys = (torch.tensor([[seed & MASK]]), torch.tensor([[seed >> 32]]))
    expected = torch.stack(reference_sampling.philox((quads, zero + position, zero, zero), keys), -1).flatten()
    assert triton_words(seed, position, num_quads).tolist() == expected.tolist()
