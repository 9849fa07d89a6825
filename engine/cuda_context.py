"""The device's context, made by the driver itself while torch is still being imported, and what the device is. No torch here.

Making it takes the better part of a second, without the interpreter's lock. The context is the device's primary one, which
the runtime under torch finds and uses; it lives as long as the process.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from .start_up import StartUp

DRIVER = "libcuda.so.1"
_NUM_MULTIPROCESSORS, _MAJOR, _MINOR, _SHARED_BYTES = 16, 75, 76, 97
"""Attributes of a device, as cuda.h numbers them."""
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """What the driver says about the first device."""

    name: str
    total_bytes: int
    major: int
    minor: int
    """Of the compute capability."""
    num_multiprocessors: int
    shared_bytes: int
    """The most that a block of threads may have."""


@dataclass(frozen=True, slots=True)
class CudaContext:
    """A context that is being made."""

    device: Future[CudaDevice | None]
    """Known before the context is; None where there is no device or no driver."""
    thread: threading.Thread


def begin_cuda_context(start_up: StartUp) -> CudaContext:
    """Makes the context of the first device in a thread; where there is no device or no driver nothing happens."""
    device: Future[CudaDevice | None] = Future()
    thread = threading.Thread(target=_make_context, args=(start_up, device), name="cuda-context", daemon=True)
    thread.start()
    return CudaContext(device, thread)


def _make_context(start_up: StartUp, found: Future[CudaDevice | None]) -> None:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        found.set_result(None)
        return
    with start_up.phase("CUDA context"):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            found.set_result(None)
            return
        found.set_result(_describe(driver, device))
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def _describe(driver: ctypes.CDLL, device: ctypes.c_int) -> CudaDevice | None:
    name, total_bytes = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    has_failed = driver.cuDeviceGetName(name, _NAME_BYTES, device)
    has_failed |= driver.cuDeviceTotalMem_v2(ctypes.byref(total_bytes), device)
    values = [ctypes.c_int() for _ in range(4)]
    for value, attribute in zip(values, (_MAJOR, _MINOR, _NUM_MULTIPROCESSORS, _SHARED_BYTES), strict=True):
        has_failed |= driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if has_failed:
        return None
    major, minor, num_multiprocessors, shared_bytes = (value.value for value in values)
    return CudaDevice(
        name=name.value.decode(errors="replace"),
        total_bytes=total_bytes.value,
        major=major,
        minor=minor,
        num_multiprocessors=num_multiprocessors,
        shared_bytes=shared_bytes,
    )
