"""Arrays that travel together arrive as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from penstock.engine.staging import start_download, upload

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("poisoned_empty")
def test_arrays_keep_shape_and_dtype_in_one_buffer(device: str) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "odd": np.arange(3, dtype=np.int32),
        "empty": np.zeros(0, np.int64),
        "wide": np.array([[2**62, -1]], np.int64),
        "strided": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
    }
    tensors = upload(arrays, torch.device(device))
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1
    for name, array in arrays.items():
        assert tensors[name].device.type == device
        assert tuple(tensors[name].shape) == array.shape
        assert tensors[name].tolist() == array.tolist()
        assert str(tensors[name].dtype) == f"torch.{array.dtype.name}"


@pytest.mark.gpu
def test_a_buffer_is_not_reused_while_it_is_being_copied() -> None:
    device = torch.device("cuda")
    torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call, unused-ignore]  # the copies queue up behind this
    uploaded = [upload({"numbers": np.full(1 << 18, number, np.int32)}, device)["numbers"] for number in range(8)]
    downloaded = [start_download(tensor) for tensor in uploaded]
    torch.cuda.synchronize()
    for number, (on_device, on_host) in enumerate(zip(uploaded, downloaded, strict=True)):
        assert (on_device == number).all()
        assert (on_host == number).all()
