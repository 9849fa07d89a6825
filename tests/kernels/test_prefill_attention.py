"""The prefill kernels against their twin, with NaN wherever nobody may look, and what they take of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from penstock.kernels import ops, prefill_work, reference_attention
from penstock.kernels.attention_batch import MAX_DECODE_QUERY_LEN
from penstock.kernels.prefill_work import KeyTiles, choose_key_tiles, max_prefill_tiles
from penstock.kernels.triton_prefill_attention import paged_prefill_attention
from penstock.kernels.triton_prefill_plan import list_tiles, plan_prefill
from tests.kernels.comparing import DEVICES, TRITON_DEVICE, assert_close
from tests.kernels.compiling import check_launches, compile_launches
from tests.kernels.contracting import contract
from tests.kernels.test_reference_attention import Case, make_case

pytestmark = pytest.mark.usefixtures("poisoned_empty")

UNTOUCHED = 7.5
TILE_ROWS = 16
KEY_TILES = KeyTiles(16, 4, 1)
FIRST_CHUNKS = [(33, 33), (1, 9), (5, 5), (17, 17), (4, 4), (0, 0)]
CHUNKS = [(1, 9), (5, 13), (1, 0), (7, 7), (33, 70), (4, 21), (6, 0), (16, 48)]
BATCHES = pytest.mark.parametrize("lengths", [FIRST_CHUNKS, CHUNKS], ids=["first-chunks", "chunks"])


def pad_tokens(case: Case, num_padding: int) -> Case:
    """The same batch in buffers for more tokens, as a CUDA graph has it."""
    padding = torch.full((num_padding, *case.q.shape[1:]), torch.nan, dtype=case.q.dtype, device=case.q.device)
    slots = torch.full((num_padding,), -1, device=case.q.device)
    batch = replace(case.batch, kv_slots=torch.cat((case.batch.kv_slots, slots)))
    return replace(case, batch=batch, q=torch.cat((case.q, padding)))


def check(
    case: Case,
    *,
    window: int | None = None,
    scale: float = 0.3,
    tile_rows: int | None = TILE_ROWS,
    key_tiles: KeyTiles | None = KEY_TILES,
) -> None:
    """Long rows must be as the twin has them, all other tokens of the output untouched."""
    expected = reference_attention.paged_attention(case.q.float(), *_wide_caches(case), case.batch, scale, window)
    num_heads, head_dim = case.q.shape[1:]
    num_kv_heads = case.k_cache.shape[1]
    batch = plan_prefill(case.batch, num_heads, num_kv_heads, head_dim)
    if tile_rows is not None:
        batch = replace(batch, prefill_work=list_tiles(case.batch, num_heads // num_kv_heads, tile_rows))
    actual = torch.full_like(case.q, UNTOUCHED)
    paged_prefill_attention(case.q, case.k_cache, case.v_cache, batch, scale, window, actual, key_tiles)
    is_written = torch.zeros(len(actual), dtype=torch.bool, device=actual.device)
    token = 0
    for query_len, context_len in case.lengths:
        is_written[token : token + query_len] = query_len > MAX_DECODE_QUERY_LEN and context_len > 0
        token += query_len
    assert_close(actual[is_written], expected[is_written], factor=2.0)
    assert (actual[~is_written] == UNTOUCHED).all()


def _wide_caches(case: Case) -> tuple[Tensor, Tensor]:
    return case.k_cache.float(), case.v_cache.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 3, 8, 20, 100])
@BATCHES
def test_every_query_sees_its_own_context_and_no_more(
    lengths: list[tuple[int, int]], window: int | None, dtype: torch.dtype
) -> None:
    case = make_case(lengths, window=window, dtype=dtype, device=TRITON_DEVICE)
    check(pad_tokens(case, 3), window=window)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [head_dim**-0.5 for head_dim in (64, 80, 96, 128)], ids=str)
def test_tiles_of_keys_that_a_query_sees_nothing_of_leave_no_trace(
    scale: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sign of the error that a product of a score and this scale is rounded with."""
    if device == "cpu":
        if TRITON_DEVICE != "cpu":
            pytest.skip("kernels are not interpreted where there is a GPU")
        contract(monkeypatch)
    case = make_case([(33, 33), (30, 70)], window=6, device=device)
    check(case, window=6, scale=scale)


@pytest.mark.parametrize(
    ("heads", "head_dim"), [((1, 1), 16), ((6, 2), 8), ((14, 2), 24), ((16, 1), 16), ((5, 1), 64)], ids=str
)
def test_heads_of_any_number_and_size(heads: tuple[int, int], head_dim: int) -> None:
    check(make_case(FIRST_CHUNKS, heads=heads, head_dim=head_dim, device=TRITON_DEVICE))


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@BATCHES
def test_blocks_of_any_size(lengths: list[tuple[int, int]], block_size: int) -> None:
    check(make_case(lengths, block_size=block_size, device=TRITON_DEVICE))


@pytest.mark.parametrize(("tile_rows", "num_keys"), [(16, 32), (32, 16), (64, 64)])
@BATCHES
def test_tiles_of_any_size(lengths: list[tuple[int, int]], tile_rows: int, num_keys: int) -> None:
    check(make_case(lengths, device=TRITON_DEVICE), tile_rows=tile_rows, key_tiles=KeyTiles(num_keys, 4, 2))


@BATCHES
def test_tiles_are_listed_once_each_with_those_that_see_most_first(lengths: list[tuple[int, int]]) -> None:
    queries = 4
    batch = pad_tokens(make_case(lengths, device=TRITON_DEVICE), 5).batch
    listed = list_tiles(batch, 2, 2 * queries).tiles.tolist()
    num_tiles = sum(tile[1] > 0 for tile in listed)
    ends = [position + queries for _, _, position, _ in listed[:num_tiles]]
    assert ends == sorted(ends, reverse=True)
    assert listed[num_tiles:] == [[0, 0, 0, 0]] * (len(listed) - num_tiles)
    expected = []
    for row, (query_len, context_len) in enumerate(lengths):
        if query_len > MAX_DECODE_QUERY_LEN and context_len > 0:
            for offset in range(0, query_len, queries):
                token, slot = int(batch.query_start[row]) + offset, int(batch.row_slots[row])
                tile = [token, min(queries, query_len - offset), context_len - query_len + offset, slot]
                expected.append(tile)
    assert sorted(listed[:num_tiles]) == sorted(expected)


@pytest.mark.parametrize("lengths", [[5] * 8, [9, 1, 1, 33], [41], [4, 4, 4], [16, 16, 17]], ids=str)
def test_no_batch_has_more_tiles_than_the_bound(lengths: list[int]) -> None:
    for queries in (1, 4, 32):
        num_tiles = sum(-(-n // queries) for n in lengths if n > MAX_DECODE_QUERY_LEN)
        assert num_tiles <= max_prefill_tiles(sum(lengths), len(lengths), queries)
        num_chunks = sum(n > MAX_DECODE_QUERY_LEN for n in lengths)
        assert num_tiles <= max_prefill_tiles(sum(lengths), num_chunks, queries)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "dtype", "window"),
    [
        ((32, 8), 128, 16, torch.bfloat16, None),
        ((32, 8), 128, 16, torch.bfloat16, 300),
        ((32, 8), 128, 32, torch.float16, None),
        ((32, 8), 128, 16, torch.float32, 300),
        ((16, 8), 128, 64, torch.bfloat16, None),
        ((32, 8), 64, 16, torch.bfloat16, None),
        ((32, 8), 64, 16, torch.bfloat16, 300),
        ((32, 8), 64, 64, torch.float16, 6),
        ((32, 8), 64, 16, torch.float32, 6),
        ((8, 1), 256, 16, torch.bfloat16, None),
        ((8, 1), 256, 32, torch.bfloat16, 300),
        ((12, 2), 96, 16, torch.bfloat16, 300),
        ((28, 4), 128, 16, torch.bfloat16, None),
    ],
    ids=str,
)
def test_real_shapes(heads: tuple[int, int], head_dim: int, block_size: int, dtype: torch.dtype, window: int | None) -> None:
    shape = {"heads": heads, "head_dim": head_dim, "block_size": block_size, "window": window, "dtype": dtype}
    mixed = make_case([(1, 700), (218, 218), (77, 1030), (5, 5), (1, 3), (1024, 1500)], device="cuda", **shape)  # type: ignore[arg-type]
    check(pad_tokens(mixed, 40), window=window, scale=head_dim**-0.5, tile_rows=None, key_tiles=None)
    first = make_case([(218, 218), (1, 90), (5, 5), (1500, 1500)], device="cuda", **shape)  # type: ignore[arg-type]
    check(pad_tokens(first, 40), window=window, scale=head_dim**-0.5, tile_rows=None, key_tiles=None)


@pytest.mark.gpu
def test_the_door_joins_decodes_and_chunks_in_a_graph_that_serves_other_batches_too() -> None:
    shape = {"heads": (32, 8), "head_dim": 128, "block_size": 16, "dtype": torch.bfloat16, "device": "cuda"}
    cases = [make_case(n, **shape) for n in ([(1, 700), (97, 300), (3, 80)], [(1, 20), (1, 3), (99, 820)])]  # type: ignore[arg-type]
    blocks = max(case.batch.block_table.shape[1] for case in cases)
    tables = [torch.nn.functional.pad(case.batch.block_table, (0, blocks - case.batch.block_table.shape[1])) for case in cases]
    num_blocks = max(len(case.k_cache) for case in cases)
    k_cache, v_cache = ops.make_kv_cache(num_blocks, 16, 8, 128, torch.bfloat16, torch.device("cuda"))
    batch = replace(cases[0].batch, block_table=tables[0].clone(), max_query_len=128, max_context_len=1024, host_lengths=None)
    q = torch.empty_like(cases[0].q)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        ops.paged_attention(q, k_cache, v_cache, ops.plan_attention(batch, 32, 8, 128, None), 0.1, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = ops.paged_attention(q, k_cache, v_cache, ops.plan_attention(batch, 32, 8, 128, None), 0.1, None)
    for case, table in zip(cases, tables, strict=True):
        k_cache[: len(case.k_cache)], v_cache[: len(case.v_cache)] = case.k_cache, case.v_cache
        q.copy_(case.q)
        for name in ("row_slots", "query_start", "context_lens"):
            getattr(batch, name).copy_(getattr(case.batch, name))
        batch.block_table.copy_(table)
        graph.replay()
        expected = reference_attention.paged_attention(q.float(), *_wide_caches(case), case.batch, 0.1, None)
        assert_close(output, expected, factor=2.0)


def launch_small_steps() -> None:
    for head_dim in (64, 96, 128, 256):
        launch_on_meta(torch.bfloat16, head_dim, 64)


def launch_large_steps() -> None:
    for head_dim in (64, 96, 128, 256):
        launch_on_meta(torch.bfloat16, head_dim, 2048)


def launch_long_prompts() -> None:
    launch_on_meta(torch.float16, 128, 8192)
    for block_size in (16, 32, 64):
        launch_on_meta(torch.bfloat16, 128, 8192, block_size=block_size)


def launch_variants() -> None:
    launch_on_meta(torch.float16, 128, 2048)
    launch_on_meta(torch.bfloat16, 128, 2048, block_size=32)
    launch_on_meta(torch.bfloat16, 128, 2048, block_size=64)
    for num_tokens in (2048, 8192):
        launch_on_meta(torch.bfloat16, 128, num_tokens, window=4096)


def launch_in_float32() -> None:
    launch_on_meta(torch.float32, 128, 8192)


def launch_on_meta(dtype: torch.dtype, head_dim: int, num_tokens: int, window: int | None = None, block_size: int = 16) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    batch = ops.AttentionBatch(
        block_table=empty(4, 1024),
        row_slots=empty(4),
        query_start=empty(5),
        context_lens=empty(4),
        kv_slots=empty(num_tokens, dtype=torch.int64),
        max_query_len=num_tokens,
        max_context_len=16384,
    )
    batch = plan_prefill(batch, 32, 8, head_dim)
    q = empty(num_tokens, 32, head_dim, dtype=dtype)
    cache = empty(9, 8, block_size, head_dim, dtype=dtype)
    paged_prefill_attention(q, cache, cache, batch, 0.1, window, q)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("launches", [launch_small_steps, launch_large_steps, launch_long_prompts, launch_variants])
@pytest.mark.parametrize("arch", [80, 89, 90, 100])
def test_compiles_for_every_architecture(launches: Callable[[], None], arch: int) -> None:
    # On Hopper registers are limited so that two programs fit side by side. With a window it takes a few more than that; the
    # tiles for long prompts spill 128 bytes, and were measured to be the fastest all the same.
    max_spilled_bytes = {launch_variants: 24, launch_long_prompts: 128}.get(launches, 0) if arch == 90 else 0
    for launch in check_launches(launches, [arch], max_spilled_bytes=max_spilled_bytes):
        if launch.kernel == "_prefill_kernel" and arch == 90:
            assert "wgmma" in launch.ptx


@pytest.mark.slow
def test_compiles_in_float32() -> None:
    assert compile_launches(launch_in_float32, [90])


def test_float32_takes_smaller_tiles() -> None:
    device = torch.device("cpu")
    keys = {dtype: choose_key_tiles(2048, 128, 128, None, dtype, device).num_keys for dtype in (torch.float32, torch.bfloat16)}
    assert keys[torch.float32] < keys[torch.bfloat16]


def test_only_large_steps_without_a_window_take_the_tiles_for_long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(prefill_work, "_limits", lambda device: (132, 232_448))
    device = torch.device("cuda")
    long_prompts, others = KeyTiles(64, 8, 2, 128), KeyTiles(32, 8, 3, 128)
    assert choose_key_tiles(4096, 128, 128, None, torch.bfloat16, device) == long_prompts
    assert choose_key_tiles(4095, 128, 128, None, torch.bfloat16, device) == others
    assert choose_key_tiles(4096, 128, 96, None, torch.bfloat16, device) == others
    assert choose_key_tiles(4096, 128, 128, 4096, torch.bfloat16, device) == others
