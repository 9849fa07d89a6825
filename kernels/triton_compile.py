"""Triton kernels compiled ahead of their first use, several at once, without running any of them.

What to compile is found by making the calls that launch the kernels, with tensors that have shapes and no memory
(FakeTensorMode): every launch on the way is turned into a compilation of exactly that specialisation. Compiling works mostly
without the interpreter's lock, so threads are enough.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction, MockTensor  # type: ignore[import-untyped, unused-ignore]

MAX_THREADS = 12


def compile_ahead(calls: Sequence[Callable[[], object]], *, loads: bool = True) -> int:
    """Compiles, or finds in the cache, every kernel that the calls launch; returns how many there are.

    Each call makes its tensors itself, on CUDA; real tensors that it uses (a model's weights) are not touched. It must not
    depend on any tensor's values, and nobody else may launch kernels in the meantime. `loads`: onto the current device, too,
    with their launchers, which is what a first launch would wait for. Raises whatever a call or a compilation raises.
    """
    kernels: dict[int, Any] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        with FakeTensorMode(allow_non_fake_inputs=True), triton.AsyncCompileMode(pool), _launches_only_compile(kernels):
            for call in calls:
                call()
        compiled = {id(kernel): kernel for kernel in map(_result, kernels.values())}
        if loads:
            list(pool.map(_load, compiled.values()))
    return len(compiled)


def fingerprint() -> str:
    """Of everything that decides about compiled kernels beside their arguments: their source, Triton, the device."""
    digest = blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {triton.__version__} {torch.cuda.get_device_name()}"


@contextlib.contextmanager
def _launches_only_compile(kernels: dict[int, Any]) -> Iterator[None]:
    """Has launches compile in place of running; collects the compiled kernels, or promises of them, by identity."""
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        arguments = [_without_memory(argument) for argument in args]
        named = {name: _without_memory(value) for name, value in options.items()}
        kernel = run(self, *arguments, grid=grid, warmup=True, **named)
        kernels[id(kernel)] = kernel
        return kernel

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = run


def _without_memory(argument: Any) -> Any:
    """What the compiler may know of a tensor: its dtype, and that it begins at a multiple of 16 bytes."""
    return MockTensor(argument.dtype) if isinstance(argument, Tensor) else argument


def _result(kernel: Any) -> Any:
    return kernel.result() if isinstance(kernel, triton.FutureKernel) else kernel


def _load(kernel: Any) -> None:
    kernel.run  # noqa: B018  a property that loads the kernel and builds its launcher
