"""How a device's memory is divided: weights, what a step takes, KV blocks. Computed, without a trial run.

`plan_memory` either returns a plan that fits or raises EngineStartError with the numbers and flags that would fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import EngineConfig
from .errors import EngineStartError
from .memory_probe import DeviceMemory
from .memory_room import Room, what_would_fit
from .model_config import DTYPE_BYTES, ModelConfig
from .model_memory import blocks_for, count_block_bytes, count_parameters, longest_request
from .progress import format_bytes
from .step_memory import StepMemory, count_step_memory, max_deterministic_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What goes where. `num_blocks` is the number of KV blocks that requests can own."""

    weights_bytes: int
    step: StepMemory
    kv_cache_bytes: int
    num_blocks: int
    block_bytes: int
    block_size: int
    max_model_len: int
    num_full_length_requests: float
    """How many requests of max_model_len tokens fit at once."""
    dtype: str
    max_num_batched_tokens: int
    max_num_seqs: int
    notes: tuple[str, ...]
    """What a person should know: a value that was lowered, and to what."""

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.step.total + self.kv_cache_bytes

    def table(self) -> str:
        """A small aligned table: weights, what a step takes, KV cache, full-length requests; then the notes."""
        tokens, step = self.num_blocks * self.block_size, self.step
        of_a_step = [
            ("activations", step.activations, f"at most, for {self.max_num_batched_tokens:,} tokens a step"),
            ("logits", step.logits, f"at most, for {self.max_num_seqs:,} requests a step: logits and drawing tokens"),
            ("attention", step.attention, "workspaces"),
            ("tables", step.tables, "block tables, token counts, rotary table"),
            ("CUDA graphs", step.graphs, "at most"),
            ("CUDA libraries", step.libraries, "set aside"),
        ]
        rows = [
            ("weights", format_bytes(self.weights_bytes), self.dtype),
            *((name, format_bytes(num_bytes), detail) for name, num_bytes, detail in of_a_step if num_bytes),
            (
                "KV cache",
                format_bytes(self.kv_cache_bytes),
                f"{self.num_blocks:,} blocks of {self.block_size} tokens: {tokens:,} tokens",
            ),
            ("full-length requests", f"{self.num_full_length_requests:.1f}", f"of {self.max_model_len:,} tokens at once"),
        ]
        width = max(len(row[0]) for row in rows)
        size_width = max(len(row[1]) for row in rows)
        lines = [f"{name:<{width}}  {size:>{size_width}}  {detail}" for name, size, detail in rows]
        return "\n".join((*lines, *self.notes))


def plan_memory(model_config: ModelConfig, config: EngineConfig, memory: DeviceMemory, dtype: str) -> MemoryPlan:
    """Divides `memory` for running the model in `dtype`.

    On cuda everything together takes `gpu_memory_utilization` of the whole device, or what is free if that is less; on the CPU
    the KV cache takes at most 1 GiB of that share of what is free. `kv_cache_memory_bytes` and `num_gpu_blocks_override` set
    the KV cache's size outright, as long as it fits into what is free.
    """
    if dtype not in DTYPE_BYTES:
        raise EngineStartError(f"--dtype must be auto, {', '.join(DTYPE_BYTES)}; not {dtype!r}")
    most_tokens = max_deterministic_tokens(model_config)
    if config.deterministic and memory.device == "cuda" and config.max_num_batched_tokens > most_tokens:
        raise EngineStartError(f"with --deterministic this model takes --max-num-batched-tokens of at most {most_tokens}")
    max_model_len = _asked_max_model_len(model_config, config)
    weights_bytes = count_parameters(model_config) * DTYPE_BYTES[dtype]
    step = count_step_memory(model_config, config, dtype=dtype, device=memory.device, max_model_len=max_model_len)
    block_bytes = count_block_bytes(model_config, config.block_size, dtype)
    asked = _asked_num_blocks(config, block_bytes)
    room = Room(config, memory, weights_bytes, step.total, block_bytes)
    try:
        num_blocks = room.num_blocks() if asked is None else room.check(*asked)
    except EngineStartError as error:
        raise EngineStartError(f"{error}; {what_would_fit(model_config, config, memory, dtype)}") from None
    fitting_len = longest_request(model_config, config, num_blocks, max_model_len)
    notes: tuple[str, ...] = ()
    if fitting_len < max_model_len:
        max_model_len = _shorten(config, max_model_len, fitting_len, num_blocks)
        notes = (
            f"max_model_len lowered from the model's {model_config.default_max_model_len:,} to {max_model_len:,}: "
            "that is what fits into the KV cache",
        )
    return MemoryPlan(
        weights_bytes=weights_bytes,
        step=step,
        kv_cache_bytes=num_blocks * block_bytes,
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        block_size=config.block_size,
        max_model_len=max_model_len,
        num_full_length_requests=num_blocks / blocks_for(model_config, config, max_model_len),
        dtype=dtype,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        notes=notes,
    )


def _asked_max_model_len(model_config: ModelConfig, config: EngineConfig) -> int:
    """The context to plan for before it is known what fits."""
    max_model_len = model_config.default_max_model_len if config.max_model_len is None else config.max_model_len
    if max_model_len < 1:
        raise EngineStartError(f"--max-model-len must be at least 1, not {max_model_len}")
    if max_model_len > model_config.largest_max_model_len:
        raise EngineStartError(
            f"--max-model-len {max_model_len} is longer than the model's context: it can be at most "
            f"{model_config.largest_max_model_len}"
        )
    return max_model_len


def _asked_num_blocks(config: EngineConfig, block_bytes: int) -> tuple[str, int] | None:
    """The flag that sets the KV cache's size outright, and how many blocks it means."""
    if config.num_gpu_blocks_override is not None:
        flag, num_blocks = "--num-gpu-blocks-override", config.num_gpu_blocks_override
    elif config.kv_cache_memory_bytes is not None:
        flag, num_blocks = "--kv-cache-memory-bytes", config.kv_cache_memory_bytes // block_bytes
    else:
        return None
    if num_blocks < 1:
        raise EngineStartError(f"{flag} is too small: one KV block takes {format_bytes(block_bytes)}")
    return flag, num_blocks


def _shorten(config: EngineConfig, max_model_len: int, fitting_len: int, num_blocks: int) -> int:
    """The context that fits, where nobody asked for a certain one."""
    if config.max_model_len is None and fitting_len > 0:
        return fitting_len
    raise EngineStartError(
        f"one request of {max_model_len:,} tokens does not fit into the {num_blocks:,} KV blocks: use --max-model-len "
        f"{fitting_len} or less, or raise --kv-cache-memory-bytes, --gpu-memory-utilization or --num-gpu-blocks-override"
    )
