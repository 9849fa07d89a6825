"""How much memory of the first GPU this process uses, by the driver's own books, whatever other processes do."""

from __future__ import annotations

import ctypes
import os

_NUM_PROCESSES = 256
_BUS_ID_BYTES = 32


class _Process(ctypes.Structure):
    """nvmlProcessInfo_v1_t."""

    _fields_ = (("pid", ctypes.c_uint), ("used_bytes", ctypes.c_ulonglong))


def process_bytes() -> int:
    """Contexts, code and allocations of this process; raises OSError where the driver does not tell."""
    cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
    ordinal, bus_id = ctypes.c_int(), ctypes.create_string_buffer(_BUS_ID_BYTES)
    device, count = ctypes.c_void_p(), ctypes.c_uint(_NUM_PROCESSES)
    processes = (_Process * _NUM_PROCESSES)()
    for error in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(ordinal), 0),
        cuda.cuDeviceGetPCIBusId(bus_id, _BUS_ID_BYTES, ordinal),
        nvml.nvmlInit_v2(),
        nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(device)),
        nvml.nvmlDeviceGetComputeRunningProcesses(device, ctypes.byref(count), processes),
    ):
        if error:
            raise OSError(f"the driver answers with error {error}")
    for process in processes[: count.value]:
        if process.pid == os.getpid():
            return int(process.used_bytes)
    raise OSError(f"the driver does not know process {os.getpid()}")
