"""Triton kernels found and compiled before their first launch, without running any of them, and without a device.

What to compile is found by making the calls that launch the kernels, with tensors on device "meta", which have shapes and no
memory, and which say in the meantime that they are on CUDA: every launch on the way names exactly one specialisation, which can
then be compiled into Triton's cache on disk. Compiling holds the interpreter's lock for most of its time: what is to go faster
is shared out between processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, unused-ignore]
from triton.backends.nvidia import driver as nvidia  # type: ignore[import-untyped, unused-ignore]
from triton.runtime.driver import driver  # type: ignore[import-untyped, unused-ignore]
from triton.runtime.jit import JITFunction, MockTensor  # type: ignore[import-untyped, unused-ignore]

WARP_SIZE = 32
_IS_CUDA = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """What kernels ask of torch.cuda.get_device_properties."""

    major: int
    minor: int
    multi_processor_count: int
    shared_memory_per_block_optin: int
    """Bytes."""


def pretend_device(properties: DeviceProperties) -> None:
    """From now on Triton compiles for such a device, and torch.cuda describes it: for a process that is to have none."""
    driver.set_active(_AbsentDevice(properties))
    torch.cuda.get_device_capability = lambda device=None: (properties.major, properties.minor)
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment, return-value]


def find_kernels(calls: Sequence[Callable[[], object]]) -> list[Callable[[], object]]:
    """What compiles into Triton's cache, or finds there, each of the kernels that the calls launch, in a fixed order.

    First comes Triton's own part of the driver, which is compiled when it is first used. Fails where there is no libcuda.
    The calls use tensors on "meta" and must not depend on any tensor's values; nobody else may launch kernels in the meantime.
    Raises whatever a call raises.
    """
    with _MetaIsCuda(), _Finding() as finding, _launches_only_compile():
        for call in calls:
            call()
    found = finding.found.values()
    return [nvidia.CudaUtils, *(lambda compile_one=compile_one: _build_launcher(compile_one()) for compile_one in found)]


class _Finding(triton.AsyncCompileMode):  # type: ignore[misc, unused-ignore]
    """Collects what launches would compile, by Triton's key, in place of compiling it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.found: dict[str, Callable[[], Any]] = {}

    def submit(self, key: str, compile_fn: Callable[[], Any], finalize_fn: object) -> None:
        self.found.setdefault(key, compile_fn)


class _MetaIsCuda(TorchFunctionMode):
    """Tensors without memory say that they are on CUDA, so that calls go where a GPU's would go."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_CUDA:
            return bool(args[0].is_meta)
        return func(*args, **(kwargs or {}))


class _AbsentDevice:
    """Stands in for Triton's driver."""

    def __init__(self, properties: DeviceProperties) -> None:
        self._target = GPUTarget("cuda", 10 * properties.major + properties.minor, WARP_SIZE)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def _launches_only_compile() -> Iterator[None]:
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        arguments = [_without_memory(argument) for argument in args]
        named = {name: _without_memory(value) for name, value in options.items()}
        return run(self, *arguments, grid=grid, warmup=True, **named)

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = run


class _Pointer(MockTensor):  # type: ignore[misc, unused-ignore]
    """What the compiler may know of a tensor: its dtype and whether it begins at a multiple of 16 bytes."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.dtype)
        # What torch's allocator hands out is aligned; views begin somewhere in it.
        self._offset_bytes = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self._offset_bytes


def _without_memory(argument: Any) -> Any:
    return _Pointer(argument) if isinstance(argument, Tensor) else argument


def _build_launcher(kernel: Any) -> None:
    """Some versions of Triton compile C for each signature, too, when a kernel is first launched."""
    if hasattr(nvidia, "make_launcher"):
        nvidia.CudaLauncher(kernel.src, kernel.metadata)
