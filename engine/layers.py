"""The layers that models are built of. Each allocates its rank's share of the weights and says which tensors of a checkpoint
go where (`targets`); nothing is initialised here.

Weights have the layout of checkpoints, [out, in]. Several checkpoint tensors may share one parameter (q, k, v; gate, up).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels import ops
from ..kernels.products import FAST, Products
from .tensor_parallel import TensorParallel


@dataclass(frozen=True, slots=True)
class WeightTarget:
    """Where one tensor of a checkpoint goes: rows or columns [start, start + length) of it into `view`."""

    view: Tensor
    """Part of a parameter, written by copy (which converts the dtype)."""
    shape: tuple[int, ...]
    """Of the whole tensor in the checkpoint."""
    dim: int = 0
    """The dimension that is shared out between ranks."""
    start: int = 0

    @property
    def length(self) -> int:
        """How much of dimension `dim` this rank takes."""
        return self.view.shape[self.dim]


@dataclass(frozen=True, slots=True)
class Place:
    """What a layer must know to allocate its weights."""

    device: torch.device
    dtype: torch.dtype
    parallel: TensorParallel
    products: Products = FAST
    """How the layer multiplies by its weights."""

    def weight(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter."""
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.dtype), requires_grad=False)


@dataclass(frozen=True, slots=True)
class OutputPart:
    """One checkpoint tensor of a fused ColumnLinear."""

    name: str
    features: int
    """Output features of the whole tensor."""
    num_shards: int
    """How many ways it is shared out; with fewer than ranks (few KV heads) neighbouring ranks hold the same shard."""


class ColumnLinear(nn.Module):
    """Several checkpoint tensors in one product: x [T, in] -> this rank's share of each part's outputs, side by side."""

    def __init__(self, in_features: int, parts: Sequence[OutputPart], *, bias: bool, place: Place) -> None:
        super().__init__()
        self.in_features, self.parts, self.parallel = in_features, tuple(parts), place.parallel
        self.products = place.products
        self.local_sizes = [part.features // part.num_shards for part in parts]
        self.weight = place.weight(sum(self.local_sizes), in_features)
        self.bias = place.weight(sum(self.local_sizes)) if bias else None

    def of_norm(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the outputs for the norm of x + residual, x + residual), both of [T, in]; without a residual that of x."""
        return self.products.add_norm_linear(x, residual, norm.weight, norm.eps, self.weight, self.bias)

    def silu_mul_of_norm(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Like of_norm, with silu(gate) * up as outputs, for the two parts gate and up."""
        return self.products.add_norm_linear_silu_mul(x, residual, norm.weight, norm.eps, self.weight, self.bias)

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        offset = 0
        for part, size in zip(self.parts, self.local_sizes, strict=True):
            start = self.parallel.rank * part.num_shards // self.parallel.size * size
            rows = slice(offset, offset + size)
            yield f"{prefix}.{part.name}.weight", WeightTarget(self.weight[rows], (part.features, self.in_features), 0, start)
            if self.bias is not None:
                yield f"{prefix}.{part.name}.bias", WeightTarget(self.bias[rows], (part.features,), 0, start)
            offset += size


class RowLinear(nn.Module):
    """x [T, this rank's share of in] -> [T, out], summed over ranks."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, place: Place) -> None:
        super().__init__()
        self.in_features, self.out_features, self.parallel = in_features, out_features, place.parallel
        self.products = place.products
        self.weight = place.weight(out_features, in_features // place.parallel.size)
        self.bias = place.weight(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.parallel.rank == 0 else None
        return self.parallel.all_reduce(self.products.linear(x, self.weight, bias))

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        start = self.parallel.rank * self.weight.shape[1]
        yield f"{prefix}.weight", WeightTarget(self.weight, (self.out_features, self.in_features), 1, start)
        if self.bias is not None:
            yield f"{prefix}.bias", WeightTarget(self.bias, (self.out_features,))


class VocabTable(nn.Module):
    """A row per token id, shared out between ranks: the embedding, the output head, or both at once (tied)."""

    def __init__(self, vocab_size: int, hidden_size: int, *, place: Place) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size, self.parallel = vocab_size, hidden_size, place.parallel
        self.products = place.products
        self.num_rows = vocab_size // place.parallel.size
        self.weight = place.weight(self.num_rows, hidden_size)

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [T] -> [T, hidden]."""
        if self.parallel.size == 1:
            return functional.embedding(token_ids, self.weight)
        rows = token_ids - self.parallel.rank * self.num_rows
        mine = (rows >= 0) & (rows < self.num_rows)
        return self.parallel.all_reduce(functional.embedding(rows * mine, self.weight) * mine[:, None])

    def logits(self, norm: RMSNorm, x: Tensor) -> Tensor:
        """The norm of x [N, hidden], times the table -> [N, vocab_size] in their dtype."""
        logits, _ = self.products.add_norm_linear(x, None, norm.weight, norm.eps, self.weight)
        return self.parallel.all_gather(logits)

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        start = self.parallel.rank * self.num_rows
        yield f"{prefix}.weight", WeightTarget(self.weight, (self.vocab_size, self.hidden_size), 0, start)


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467) with a learned scale; every rank holds all of it."""

    def __init__(self, size: int, eps: float, *, place: Place) -> None:
        super().__init__()
        self.eps = eps
        self.weight = place.weight(size)

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        yield f"{prefix}.weight", WeightTarget(self.weight, tuple(self.weight.shape))
