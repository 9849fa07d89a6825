"""A model and its runner from an engine's settings, on any device."""

from __future__ import annotations

import torch

from ..kernels.products import FAST, INVARIANT
from .config import EngineConfig
from .memory import MemoryPlan
from .model_config import ModelConfig
from .model_runner import ModelRunner
from .models import CausalLM, build_model


def make_model(config: EngineConfig, model_config: ModelConfig, memory_plan: MemoryPlan, device: torch.device) -> CausalLM:
    """The model with uninitialised weights."""
    return build_model(
        model_config,
        device=device,
        dtype=getattr(torch, memory_plan.dtype),
        max_model_len=memory_plan.max_model_len,
        products=INVARIANT if config.deterministic else FAST,
    )


def make_runner(
    config: EngineConfig, model_config: ModelConfig, memory_plan: MemoryPlan, device: torch.device, model: CausalLM
) -> ModelRunner:
    """A runner with a KV cache of its own."""
    return ModelRunner(
        model,
        model_config,
        device=device,
        dtype=getattr(torch, memory_plan.dtype),
        num_blocks=memory_plan.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=memory_plan.max_model_len,
        uses_graphs=not config.enforce_eager and device.type == "cuda",
        shares_prefixes=config.enable_prefix_caching,
        deterministic=config.deterministic,
    )
