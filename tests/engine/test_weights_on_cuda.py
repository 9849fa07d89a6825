"""Weights that stream to a GPU through pinned buffers are those of the file, whatever the dtype and wherever chunks are cut."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import torch

from penstock.engine.cuda_context import begin_cuda_context
from penstock.engine.dummy_weights import fill_with_dummy_weights
from penstock.engine.model_config import ModelConfig
from penstock.engine.models import build_model
from penstock.engine.start_up import StartUp
from penstock.engine.weight_files import find_weight_files
from penstock.engine.weight_reader import WeightReader
from penstock.engine.weights import load_weights
from tests.engine.test_weights import Tensors, built, tensors, write

__all__ = ["tensors"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("buffer_bytes", [64, 1000, 1 << 20])
def test_every_tensor_arrives(
    tensors: Tensors, tmp_path: Path, buffer_bytes: int, dtype: torch.dtype, stored: torch.dtype, device: str
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in tensors.items()}
    model_dir = write(tmp_path, tensors)
    expected = built(model_dir, dtype)
    load_weights(expected, model_dir, io.StringIO())
    config = ModelConfig.from_dir(model_dir)
    with torch.inference_mode():
        model = build_model(config, device=device, dtype=dtype)
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        reader = WeightReader(find_weight_files(model_dir), config.needs_tensor, buffer_bytes=buffer_bytes)
        load_weights(model, model_dir, io.StringIO(), reader)
    assert torch.equal(model.lm_head.weight.cpu(), tensors["lm_head.weight"].to(dtype))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.cpu(), expected.get_parameter(name)), name


@pytest.mark.gpu
def test_the_driver_makes_a_context_that_torch_uses() -> None:
    start_up = StartUp()
    context = begin_cuda_context(start_up)
    context.thread.join(30)
    properties, device = torch.cuda.get_device_properties(0), context.device.result(0)
    assert device is not None
    assert (device.name, device.major, device.minor) == (properties.name, properties.major, properties.minor)
    assert device.num_multiprocessors == properties.multi_processor_count
    assert device.shared_bytes == properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    assert start_up.seconds["CUDA context"] > 0
    assert float(torch.ones(3, device="cuda").sum()) == 3


@pytest.mark.gpu
@pytest.mark.whole_gpu
def test_made_up_weights_of_an_8b_model_take_less_than_half_a_second() -> None:
    from tests.engine.test_memory import LLAMA_8B

    with torch.inference_mode():
        model = build_model(LLAMA_8B, device="cuda", dtype=torch.bfloat16, max_model_len=4096)
        fill_with_dummy_weights(model, 0)
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        fill_with_dummy_weights(model, 1)
        torch.cuda.synchronize()
    assert time.perf_counter() - began_s < 0.5
