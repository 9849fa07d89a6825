"""Decode attention against its twin, and against itself where bits must not change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from penstock.kernels import ops, triton_decode_plan
from penstock.kernels.attention_batch import MAX_DECODE_QUERY_LEN
from penstock.kernels.triton_attend_keys import Tuning
from penstock.kernels.triton_decode_attention import paged_decode_attention
from tests.kernels.comparing import assert_close
from tests.kernels.compiling import ARCHITECTURES, SHARED_BYTES, compile_launches
from tests.kernels.paged_batches import PagedBatch, make_paged_batch, share

UNTOUCHED = 7.0
HARMLESS_SPILL_BYTES = 24
"""The compiler may put a few numbers aside while the loop over keys runs, to fit three programs: once per item."""
SMALL_TUNING = Tuning(tile_bytes=32 * 64 * 2, num_warps=4, num_stages=3, programs_per_multiprocessor=2)
"""Tiles of 32 keys of 64 numbers of 16 bits."""
MIXED = [(1, 133), (1, 1), (3, 70), (1, 0), (1, 300), (4, 4), (9, 40), (2, 64), (1, 97), (5, 0), (1, 31)]


@pytest.fixture(autouse=True)
def _poisoned(poisoned_empty: None) -> None:
    pass


@pytest.fixture
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of 32 keys of 64 numbers, 5 of them at most."""
    monkeypatch.setattr(triton_decode_plan, "SPLIT_BYTES", 32 * 64 * 4)
    monkeypatch.setattr(triton_decode_plan, "MAX_SPLITS", 5)


def attend(paged: PagedBatch) -> Tensor:
    """Output [T, Hq, D], UNTOUCHED where nothing was written. In small tiles where it is interpreted."""
    out = torch.full_like(paged.q, UNTOUCHED)
    args = (paged.q, paged.k_cache, paged.v_cache, paged.batch, paged.scale, paged.window, out)
    if paged.q.is_cuda:
        paged_decode_attention(*args)
    else:
        paged_decode_attention(*args, SMALL_TUNING, SMALL_TUNING)
    return out


def check(paged: PagedBatch) -> None:
    actual = attend(paged)
    is_ours = torch.tensor([context > 0 and query <= MAX_DECODE_QUERY_LEN for query, context in paged.lengths])
    is_our_token = is_ours[paged.rows_of_tokens()].to(actual.device)
    assert (actual[~is_our_token] == UNTOUCHED).all()
    assert_close(actual[is_our_token], paged.expected()[is_our_token], factor=2.0)


@pytest.mark.parametrize("window", [None, 1, 33, 60, 1000])
@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "dtype"),
    [
        ((8, 2), 64, 16, torch.float16),
        ((3, 1), 96, 32, torch.float16),
        ((2, 2), 128, 64, torch.float16),
        ((16, 1), 256, 16, torch.float16),
        ((7, 1), 64, 16, torch.float32),
        ((10, 2), 24, 5, torch.float32),
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_splits")
def test_rows_of_few_query_tokens_are_written_as_the_twin_has_them(
    heads: tuple[int, int], head_dim: int, block_size: int, dtype: torch.dtype, window: int | None
) -> None:
    check(make_paged_batch(MIXED, heads=heads, head_dim=head_dim, block_size=block_size, dtype=dtype, window=window))


def test_unsplit_rows_are_written_as_the_twin_has_them() -> None:
    check(make_paged_batch([length for length in MIXED if length[1] < 200]))


@pytest.mark.usefixtures("small_splits")
def test_many_rows_are_planned_by_several_programs() -> None:
    lengths = [(1 + row % 5, (row * 37) % 190 + row % 5 + 1 if row % 7 else 0) for row in range(50)]
    check(make_paged_batch(lengths, heads=(4, 1)))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.usefixtures("small_splits")
def test_a_row_comes_out_the_same_whatever_else_is_in_the_batch(window: int | None) -> None:
    paged = make_paged_batch(MIXED, window=window)
    together, row_of_token = attend(paged), paged.rows_of_tokens()
    for rows in ([0], [4], [2], [8, 7, 0], [10, 3, 2, 6, 4]):
        other = paged.with_rows(rows)
        expected = torch.cat([together[row_of_token == row] for row in rows])
        assert torch.equal(attend(other), expected)


@pytest.mark.usefixtures("small_splits")
def test_one_plan_serves_several_layers() -> None:
    paged = make_paged_batch(MIXED)
    once = attend(paged)
    planned = triton_decode_plan.plan_attention(paged.batch, 8, 2, 64, None)
    assert planned.decode_work is not None
    for _ in range(2):
        assert torch.equal(attend(replace(paged, batch=planned)), once)


PREFIXES = [([0, 2, 5], 256), ([2, 5], 512), ([3, 6], 256)]
SHARING = [(1, 300), (1, 310), (1, 560), (1, 290), (1, 0), (1, 530), (1, 257), (3, 20)]


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("heads", [(8, 2), (32, 1), (3, 3)], ids=str)
def test_shared_chunks_are_read_as_if_each_row_had_its_own(heads: tuple[int, int]) -> None:
    paged = share(make_paged_batch(SHARING, heads=heads, prefixes=PREFIXES))
    assert paged.batch.shared is not None
    assert paged.batch.shared.num_chunks.tolist() == [1, 0, 2, 1, 0, 2, 1, 0]
    check(paged)


@pytest.mark.usefixtures("small_splits")
def test_shared_chunks_are_read_where_they_lie() -> None:
    """Not from a row's own table: what only that says of the prefix is wrong here."""
    paged = share(make_paged_batch(SHARING, prefixes=PREFIXES))
    expected = attend(paged)
    for row in (5, 6):  # not the first of their groups
        paged.batch.block_table[int(paged.batch.row_slots[row]), : 256 // 16] = len(paged.k_cache) - 1
    assert torch.equal(attend(paged), expected)


@pytest.mark.usefixtures("small_splits")
def test_a_row_that_became_padding_leaves_its_group_alone() -> None:
    paged = share(make_paged_batch(SHARING, prefixes=PREFIXES))
    expected = attend(paged)
    paged.batch.context_lens[2] = 0
    expected[2] = UNTOUCHED
    assert torch.equal(attend(paged), expected)


def launch_everything() -> None:
    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device="meta")

    shared = ops.SharedChunks(members=integers(9), items=integers(9, 5), shared_lens=integers(9), num_chunks=integers(9))
    for heads, head_dim, block_size, window in (
        ((32, 8), 64, 16, None),
        ((32, 32), 96, 32, 4096),
        ((32, 8), 128, 16, None),
        ((16, 1), 256, 64, None),
    ):
        batch = ops.AttentionBatch(
            block_table=integers(20, 512),
            row_slots=integers(9),
            query_start=integers(10),
            context_lens=integers(9),
            kv_slots=torch.empty(17, dtype=torch.int64, device="meta"),
            max_query_len=4,
            max_context_len=8192,
            shared=shared if window is None else None,
        )
        q = torch.empty(17, heads[0], head_dim, dtype=torch.bfloat16, device="meta")
        cache = torch.empty(64, heads[1], block_size, head_dim, dtype=torch.bfloat16, device="meta")
        paged_decode_attention(q, cache, cache, batch, 0.1, window, q)


def test_compiles_for_every_architecture() -> None:
    compiled = compile_launches(launch_everything)
    for launch in compiled:
        assert launch.shared_bytes <= SHARED_BYTES[launch.arch]
        assert launch.spilled_bytes <= HARMLESS_SPILL_BYTES
    assert {launch.arch for launch in compiled} == set(ARCHITECTURES)
    assert {launch.kernel for launch in compiled} == {
        "plan_decode_kernel",
        "decode_attention_kernel",
        "shared_attention_kernel",
        "merge_parts_kernel",
    }
    for launch in compiled:
        if launch.kernel == "decode_attention_kernel":
            # A tile of keys and one of values stay on their way while the tile before is waited for.
            assert max(map(int, re.findall(r"cp\.async\.wait_group\s+(?:0x)?(\d+)", launch.ptx))) >= 2


REAL_LENGTHS = [(1, 1000), (1, 5000), (1, 17), (4, 1023), (1, 0), (2, 300), (1, 40000), *[(1, 1000)] * 60, (7, 100)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "dtype", "window"),
    [
        ((32, 8), 128, 16, torch.bfloat16, None),
        ((32, 8), 128, 16, torch.bfloat16, 512),
        ((32, 8), 128, 16, torch.float32, 512),
        ((32, 8), 64, 32, torch.bfloat16, None),
        ((32, 8), 64, 16, torch.float16, 512),
        ((32, 8), 64, 16, torch.float32, None),
        ((16, 8), 128, 64, torch.float16, None),
        ((32, 32), 96, 16, torch.bfloat16, None),
        ((32, 32), 96, 32, torch.float16, 512),
        ((8, 1), 256, 16, torch.bfloat16, None),
        ((8, 1), 256, 16, torch.float32, 512),
        ((28, 4), 128, 16, torch.bfloat16, None),
    ],
    ids=str,
)
def test_real_shapes(heads: tuple[int, int], head_dim: int, block_size: int, dtype: torch.dtype, window: int | None) -> None:
    shape = {"heads": heads, "head_dim": head_dim, "block_size": block_size}
    paged = make_paged_batch(REAL_LENGTHS, **shape, dtype=dtype, window=window, device="cuda")  # type: ignore[arg-type]
    check(paged)
    together = attend(paged)
    for rows in ([1], [6, 3, 0]):
        expected = torch.cat([together[(paged.rows_of_tokens() == row).cuda()] for row in rows])
        assert torch.equal(attend(paged.with_rows(rows)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_real_shared_prefixes(head_dim: int) -> None:
    lengths = [(1, 2100 + 13 * row) for row in range(70)]
    ungrouped = make_paged_batch(
        lengths, heads=(32, 8), head_dim=head_dim, dtype=torch.bfloat16, device="cuda", prefixes=[(list(range(1, 70)), 2048)]
    )
    out = attend(share(ungrouped))
    assert_close(out, ungrouped.expected(), factor=2.0)
    assert_close(out, attend(ungrouped).double(), factor=2.0)


@pytest.mark.gpu
def test_a_graph_follows_lengths_that_change_on_the_device() -> None:
    paged = make_paged_batch([(1, 3000)] * 9, heads=(32, 8), head_dim=128, dtype=torch.bfloat16, device="cuda")
    out = torch.empty_like(paged.q)

    def step() -> None:
        batch = ops.plan_attention(paged.batch, 32, 8, 128, None)
        for _ in range(2):
            out.copy_(ops.paged_attention(paged.q, paged.k_cache, paged.v_cache, batch, paged.scale, None))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([3000] * 9, [1, 0, 200, 2999, 0, 129, 128, 1500, 2048], [0] * 8 + [700]):
        paged.batch.context_lens.copy_(torch.tensor(lengths))
        out.fill_(UNTOUCHED)
        graph.replay()
        is_real = torch.tensor(lengths, device="cuda") > 0
        assert_close(out[is_real], paged.expected()[is_real], factor=2.0)
