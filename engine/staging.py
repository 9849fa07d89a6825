"""Moves between host and device that do not wait: many small arrays in one copy there, results back through pinned memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT_BYTES = 16


def upload(arrays: Mapping[str, NDArray[np.generic]], device: torch.device) -> dict[str, Tensor]:
    """The arrays as device tensors of the same shapes and dtypes, views of one buffer that travels in one copy."""
    starts: dict[str, int] = {}
    num_bytes = 0
    for name, array in arrays.items():
        starts[name] = num_bytes
        num_bytes += -(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    on_cuda = device.type == "cuda"
    # The caching allocator of pinned memory hands a buffer out again only after the copies out of it are done.
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_cuda)
    host_bytes = host.numpy()
    for name, array in arrays.items():
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        host_bytes[starts[name] : starts[name] + array.nbytes] = source
    buffer = host.to(device, non_blocking=True)
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        part = buffer[starts[name] : starts[name] + array.nbytes]
        tensors[name] = part.view(_torch_dtype(array)).view(array.shape)
    return tensors


def start_download(tensor: Tensor) -> Tensor:
    """A CPU tensor that holds `tensor` once the device has come this far (an event recorded now tells when)."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


_DTYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


def _torch_dtype(array: NDArray[np.generic]) -> torch.dtype:
    return _DTYPES[array.dtype.name]
