"""The architectures we have a file for, by the name config.json calls them."""

from __future__ import annotations

import torch

from ...kernels.products import FAST, Products
from ..errors import EngineStartError
from ..layers import Place
from ..model_config import ModelConfig
from ..tensor_parallel import TensorParallel
from .causal_lm import CausalLM
from .llama import LlamaForCausalLM
from .mistral import MistralForCausalLM
from .qwen2 import Qwen2ForCausalLM
from .qwen3 import Qwen3ForCausalLM

__all__ = ["CausalLM", "build_model"]

_MODELS: dict[str, type[CausalLM]] = {
    model.__name__: model for model in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
}


def build_model(
    model_config: ModelConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    max_model_len: int | None = None,
    parallel: TensorParallel | None = None,
    products: Products = FAST,
) -> CausalLM:
    """The model on `device`, its weights in `dtype` and uninitialised.

    `max_model_len` is the longest context it will see (None: the model's own); `parallel` this process's share of it (None:
    all); `products` how its layers multiply. Raises EngineStartError where the model cannot be shared out between so many
    processes.
    """
    parallel = parallel or TensorParallel()
    _check_shares(model_config, parallel.size)
    place = Place(torch.device(device), dtype, parallel, products)
    num_positions = max_model_len or model_config.default_max_model_len
    return _MODELS[model_config.architecture](model_config, num_positions=num_positions, place=place)


def _check_shares(config: ModelConfig, size: int) -> None:
    for name in ("num_heads", "intermediate_size", "vocab_size"):
        if getattr(config, name) % size:
            raise EngineStartError(
                f"--tensor-parallel-size {size} does not divide the model's {name} ({getattr(config, name)})"
            )
    if config.num_kv_heads % size and size % config.num_kv_heads:
        raise EngineStartError(f"--tensor-parallel-size {size} does not fit the model's {config.num_kv_heads} KV heads")
