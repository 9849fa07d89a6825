"""The device's context, made by the driver itself while torch is still being imported. No torch here.

Making it takes the better part of a second, without the interpreter's lock. The context is the device's primary one, which
the runtime under torch finds and uses; it lives as long as the process.
"""

from __future__ import annotations

import ctypes
import threading

from .start_up import StartUp

DRIVER = "libcuda.so.1"


def begin_cuda_context(start_up: StartUp) -> threading.Thread:
    """Makes the context of the first device in a thread; where there is no device or no driver nothing happens."""
    thread = threading.Thread(target=_make_context, args=(start_up,), name="cuda-context", daemon=True)
    thread.start()
    return thread


def _make_context(start_up: StartUp) -> None:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return
    with start_up.phase("CUDA context"):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
