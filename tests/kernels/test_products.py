"""Matrix products: each kernel against float64, a row's independence of its batch, what the kernels take of a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels import ops, reference_products
from penstock.kernels.product_choices import Kind, choose, from_json, guess, to_json
from penstock.kernels.products import FAST, INVARIANT
from penstock.kernels.triton_gemv import GemvConfig, Norm, gemv
from penstock.kernels.triton_invariant import invariant_linear
from penstock.kernels.triton_skinny import SkinnyConfig, skinny
from tests.kernels.comparing import DEVICES, DTYPES, TRITON_DEVICE, assert_close, random_tensor
from tests.kernels.compiling import check_launches

pytestmark = pytest.mark.usefixtures("poisoned_empty")
INTERPRETED_DTYPES = [torch.float32, torch.float16]
SHAPES = [(1, 5, 70), (2, 9, 8), (3, 17, 300), (4, 32, 512)]
EPS = 1e-5
KINDS: dict[tuple[bool, bool], Kind] = {(False, False): "linear", (True, True): "norm_gated"}
"""By whether there is an activation behind and a norm before."""


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers on the kernels' device with NaN before and behind, so that reading beyond them is seen."""
    numbers = random_tensor(*shape)
    padded = torch.full((numbers.numel() + 8192,), float("nan"))
    padded[4096 : 4096 + numbers.numel()] = numbers.flatten()
    return padded.to(TRITON_DEVICE, dtype)[4096 : 4096 + numbers.numel()].view(shape)


def expected_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False, norm_weight: Tensor | None = None
) -> Tensor:
    """In float64."""
    x = x.double()
    if norm_weight is not None:
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * norm_weight.double()
    y = x @ weight.double().T + (0 if bias is None else bias.double())
    if gated:
        gate, up = y.chunk(2, dim=-1)
        y = functional.silu(gate) * up
    return y


@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("before", ["nothing", "norm", "addition and norm"])
def test_gemv(shape: tuple[int, int, int], dtype: torch.dtype, gated: bool, has_bias: bool, before: str) -> None:
    num_rows, num_outputs, num_inputs = shape
    x, residual = (poisoned(num_rows, num_inputs, dtype=dtype) for _ in range(2))
    weight = poisoned(num_outputs * (1 + gated), num_inputs, dtype=dtype)
    bias = poisoned(weight.shape[0], dtype=dtype) if has_bias else None
    norm_weight = None if before == "nothing" else poisoned(num_inputs, dtype=dtype)
    norm = None if norm_weight is None else Norm(norm_weight, EPS, residual if before == "addition and norm" else None)
    y, new_residual = gemv(x, weight, bias, GemvConfig(4, 256, 1), norm=norm, gated=gated)
    h = x + residual if before == "addition and norm" else x
    torch.testing.assert_close(new_residual, h, rtol=0, atol=0)
    h = x.double() + residual.double() if before == "addition and norm" else x  # unrounded on the way to the product
    assert_close(y, expected_product(h, weight, bias, gated=gated, norm_weight=norm_weight))


@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (20, 40, 513), (64, 9, 24)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("split_k", [1, 3])
def test_skinny(shape: tuple[int, int, int], dtype: torch.dtype, gated: bool, has_bias: bool, split_k: int) -> None:
    num_rows, num_outputs, num_inputs = shape
    x, weight = poisoned(num_rows, num_inputs, dtype=dtype), poisoned(num_outputs * (1 + gated), num_inputs, dtype=dtype)
    bias = poisoned(weight.shape[0], dtype=dtype) if has_bias else None
    y = skinny(x, weight, bias, SkinnyConfig(16, 32, split_k, 4, 2), gated=gated)
    assert_close(y, expected_product(x, weight, bias, gated=gated))


@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES, ids=str)
def test_a_row_of_a_kernel_regards_no_other_row(dtype: torch.dtype) -> None:
    x, weight = poisoned(4, 300, dtype=dtype), poisoned(10, 300, dtype=dtype)
    norm = Norm(poisoned(300, dtype=dtype), EPS, None)
    config, skinny_config = GemvConfig(4, 256, 1), SkinnyConfig(16, 32, 2, 4, 2)
    strange = x.clone()
    strange[:2] = -3
    for gated in (False, True):
        y, same = (gemv(rows, weight, None, config, norm=norm, gated=gated)[0] for rows in (x, strange))
        assert torch.equal(y[2:], same[2:])
        y, same = (skinny(rows, weight, None, skinny_config, gated=gated) for rows in (x, strange))
        assert torch.equal(y[2:], same[2:])


def slices(num_rows: int) -> list[slice]:
    return [slice(i, i + n) for n in (1, 2, 3, 5, 16, 17, 33) for i in (0, 1, 7, num_rows - n)]


@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_invariant_kernel(dtype: torch.dtype, has_bias: bool) -> None:
    x, weight = poisoned(70, 147, dtype=dtype), poisoned(75, 147, dtype=dtype)
    bias = poisoned(75, dtype=dtype) if has_bias else None
    y = invariant_linear(x, weight, bias)
    assert_close(y, expected_product(x, weight, bias))
    for rows in (slice(0, 1), slice(3, 5), slice(69, 70), slice(1, 66)):
        assert torch.equal(invariant_linear(x[rows], weight, bias), y[rows])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(41, 67), (96, 64), (640, 192), (333, 1000), (1, 333), (2048, 256)])
def test_invariant_rows_are_bitwise_the_same_in_any_batch(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, device: str
) -> None:
    x, weight = (random_tensor(n, num_inputs, dtype=dtype, device=device) for n in (67, num_outputs))
    bias = random_tensor(num_outputs, dtype=dtype, device=device)
    y = ops.invariant_linear(x, weight, bias)
    assert_close(y, expected_product(x, weight, bias))
    for rows in slices(67):
        assert torch.equal(ops.invariant_linear(x[rows], weight, bias), y[rows])
    same = x[:1].expand(67, -1).contiguous()
    assert torch.equal(ops.invariant_linear(same, weight, bias), y[:1].expand(67, -1))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("size", [57, 1000, 11008])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_beside_products_are_bitwise_the_same_in_any_batch(dtype: torch.dtype, size: int, num_threads: int) -> None:
    """SwiGLU, norms and logprobs on the CPU: whatever torch vectorizes and shares out between threads."""
    gate_up, weight = torch.randn(37, 2 * size).to(dtype), torch.randn(size).to(dtype)
    token_ids, num_threads_before = torch.randint(0, size, (37,)), torch.get_num_threads()

    def results(rows: slice) -> list[torch.Tensor]:
        gates = gate_up[rows, :size].contiguous()
        normed = ops.rms_norm(gates, weight, 1e-6)
        return [ops.invariant_silu_mul(gate_up[rows]), normed, ops.top_logprobs(gates, token_ids[rows], 4)[1]]

    torch.set_num_threads(num_threads)
    try:
        whole = results(slice(0, 37))
        torch.testing.assert_close(whole[0], ops.silu_mul(gate_up))
        for rows in (slice(0, 1), slice(36, 37), slice(3, 5), slice(1, 36)):
            for part, of_all in zip(results(rows), whole, strict=True):
                assert torch.equal(part, of_all[rows])
    finally:
        torch.set_num_threads(num_threads_before)


def test_torch_products_are_not_invariant() -> None:
    """Else the invariant ones could go."""
    x, weight = random_tensor(67, 192), random_tensor(640, 192)
    y = functional.linear(x, weight)
    assert any(not torch.equal(functional.linear(x[rows], weight), y[rows]) for rows in slices(67))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("products", [FAST, INVARIANT], ids=["fast", "invariant"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_products_of_layers(products: object, dtype: torch.dtype, has_residual: bool, device: str) -> None:
    assert products in (FAST, INVARIANT)
    chosen = FAST if products == FAST else INVARIANT
    for num_rows in (1, 3, 5):
        x, residual = (random_tensor(num_rows, 512, dtype=dtype, device=device) for _ in range(2))
        norm_weight = random_tensor(512, dtype=dtype, device=device)
        weight, bias = random_tensor(64, 512, dtype=dtype, device=device), random_tensor(64, dtype=dtype, device=device)
        h = x + residual if has_residual else x
        added = residual if has_residual else None
        factor = 1.0 if dtype == torch.float32 else 3.0  # the norm's result is rounded where a kernel of its own computes it
        assert_close(chosen.linear(x, weight, bias), expected_product(x, weight, bias))
        assert_close(chosen.linear_silu_mul(x, weight), expected_product(x, weight, None, gated=True), factor)
        y, new_residual = chosen.add_norm_linear(x, added, norm_weight, EPS, weight, bias)
        assert_close(y, expected_product(h, weight, bias, norm_weight=norm_weight), factor)
        assert torch.equal(new_residual, h)
        y, new_residual = chosen.add_norm_linear_silu_mul(x, added, norm_weight, EPS, weight, bias)
        assert_close(y, expected_product(h, weight, bias, gated=True, norm_weight=norm_weight), factor)
        assert torch.equal(new_residual, h)


def test_choices_survive_the_table() -> None:
    for config in (None, GemvConfig(8, 1024, 4, 3, 2), SkinnyConfig(64, 128, 4, 4, 3)):
        assert from_json(to_json(config)) == config


def test_what_was_not_measured_is_guessed() -> None:
    assert isinstance(guess("linear", 1, 4096, 4096), GemvConfig)
    assert guess("linear", 5, 4096, 4096) is None
    assert guess("linear", 1, 4096, 100) is None
    gated, plain = guess("gated", 1, 28672, 4096), guess("linear", 1, 28672, 4096)
    assert isinstance(gated, GemvConfig)
    assert isinstance(plain, GemvConfig)
    assert gated.block_n == plain.block_n // 2  # of each, gates and ups


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def launch_everything() -> None:
    """What is chosen for few rows in the shapes of an 8B and a 0.6B model, typical skinny ones, and the invariant product."""
    for num_rows, num_outputs, num_inputs in ((1, 6144, 4096), (4, 2048, 1024)):
        x, norm_weight, weight = meta(num_rows, num_inputs), meta(num_inputs), meta(num_outputs, num_inputs)
        for gated, normed in ((False, False), (True, True)):
            config = choose(KINDS[gated, normed], num_rows, num_outputs, num_inputs, 0)
            assert isinstance(config, GemvConfig)
            gemv(x, weight, None, config, norm=Norm(norm_weight, EPS, x) if normed else None, gated=gated)
    skinny(meta(16, 4096), meta(4096, 4096), meta(4096), SkinnyConfig(64, 128, 4, 4, 3))
    skinny(meta(16, 4096), meta(4096, 4096), None, SkinnyConfig(32, 128, 1, 4, 3), gated=True)
    invariant_linear(meta(16, 4096), meta(4096, 4096), meta(4096))


def test_compiles_for_every_architecture() -> None:
    for launch in check_launches(launch_everything):
        if launch.kernel == "_invariant_kernel":
            continue
        assert ("griddepcontrol.wait" in launch.ptx) == (launch.arch >= 90)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 3, 16, 64])
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs"), [(6144, 4096), (4096, 4096), (4096, 14336), (28672, 4096), (1024, 3072), (2048, 1024)]
)
def test_real_shapes(num_rows: int, num_outputs: int, num_inputs: int) -> None:
    dtype, device = torch.bfloat16, "cuda"
    x, residual = (random_tensor(num_rows, num_inputs, dtype=dtype, device=device) for _ in range(2))
    weight = random_tensor(num_outputs, num_inputs, dtype=dtype, device=device) * num_inputs**-0.5
    norm_weight = random_tensor(num_inputs, dtype=dtype, device=device)
    assert choose("linear", num_rows, num_outputs, num_inputs, 0) is None or num_rows <= 64
    assert_close(ops.linear(x, weight), expected_product(x, weight, None))
    assert_close(ops.linear_silu_mul(x, weight), expected_product(x, weight, None, gated=True), 2.0)
    for gated, function in ((False, ops.add_norm_linear), (True, ops.add_norm_linear_silu_mul)):
        twin = getattr(reference_products, function.__name__)
        y, new_residual = function(x, residual, norm_weight, EPS, weight)
        assert_close(y, expected_product(x + residual, weight, None, gated=gated, norm_weight=norm_weight), 2.0)
        assert torch.equal(new_residual, twin(x, residual, norm_weight, EPS, weight)[1])


@pytest.mark.gpu
def test_a_chain_of_early_starts_gives_in_a_graph_what_it_gives_step_by_step() -> None:
    """Kernels that start before their inputs are written, and buffers used again and again, show races as wrong numbers."""
    weights = [random_tensor(2048, 2048, dtype=torch.bfloat16, device="cuda") * 2048**-0.5 for _ in range(16)]
    norm_weight = torch.ones(2048, dtype=torch.bfloat16, device="cuda")

    def chain(x: Tensor, wait: bool) -> Tensor:
        residual = None
        for weight in weights:
            x, residual = ops.add_norm_linear(x, residual, norm_weight, EPS, weight)
            if wait:
                torch.cuda.synchronize()
        return x

    x = torch.empty(1, 2048, dtype=torch.bfloat16, device="cuda").normal_()
    chain(x, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = chain(x, False)
    for _ in range(50):
        x.normal_()
        graph.replay()
        assert torch.equal(y, chain(x, True))
