"""Makes Triton's interpreter fuse a product with the sum or difference that takes it, as compilers for GPUs do.

The interpreter rounds every product to float32. On a GPU x * y - z is one instruction that rounds once, so that x * y - z need
not be 0 where z is x * y: off by up to half a last place of it, which is huge where the product is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle  # type: ignore[import-untyped, unused-ignore]


def contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of the test, in float32, where the first operand of the sum or difference is a product."""
    multiply = InterpreterBuilder.create_fmul

    def create_fmul(self: Any, x: Any, y: Any) -> Any:
        product = multiply(self, x, y)
        if product.dtype.scalar == tl.float32:
            product.set_attr("exact", x.data.astype(np.float64) * y.data.astype(np.float64))
        return product

    def fused(operation: Any) -> Any:
        def create(self: Any, x: Any, y: Any) -> Any:
            exact = x.attr.get("exact")
            if exact is None:
                return self.binary_op(x, y, operation)
            return TensorHandle(operation(exact, y.data.astype(np.float64)).astype(np.float32), x.dtype.scalar)

        return create

    monkeypatch.setattr(InterpreterBuilder, "create_fmul", create_fmul)
    monkeypatch.setattr(InterpreterBuilder, "create_fadd", fused(np.add))
    monkeypatch.setattr(InterpreterBuilder, "create_fsub", fused(np.subtract))
