"""Whether a KV cache finds room beside weights and a step, and if not, which flags would make room."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .config import EngineConfig
from .errors import EngineStartError
from .memory_probe import DeviceMemory
from .model_config import DTYPE_BYTES, ModelConfig
from .model_memory import blocks_for, count_block_bytes, count_parameters, longest_request
from .progress import format_bytes
from .step_memory import count_step_memory

DEFAULT_CPU_KV_BYTES = 1 << 30
SMALLEST_STEP_TOKENS, SMALLEST_NUM_SEQS = 256, 8
"""Nothing smaller is proposed."""
MAX_UTILIZATION = 0.98


@dataclass(frozen=True, slots=True)
class Room:
    """A device and what is to be put there."""

    config: EngineConfig
    memory: DeviceMemory
    weights_bytes: int
    step_bytes: int
    block_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What the engine may take in all."""
        memory = self.memory
        whole = memory.free_bytes if memory.device == "cpu" else memory.total_bytes
        return min(int(whole * self.config.gpu_memory_utilization), memory.free_bytes)

    @property
    def _needed(self) -> str:
        memory = self.memory
        return (
            f"weights take {format_bytes(self.weights_bytes)} and a step up to {format_bytes(self.step_bytes)}, "
            f"{format_bytes(memory.free_bytes)} of {format_bytes(memory.total_bytes)} are free on {memory.device}"
        )

    def num_blocks(self) -> int:
        """KV blocks in what is left; raises EngineStartError where there is no room for one."""
        kv_bytes = self.usable_bytes - self.weights_bytes - self.step_bytes
        if self.memory.device == "cpu":
            kv_bytes = min(kv_bytes, DEFAULT_CPU_KV_BYTES)
        if kv_bytes >= self.block_bytes:
            return kv_bytes // self.block_bytes
        if self.weights_bytes > self.memory.free_bytes:
            raise EngineStartError(f"not enough memory for the model: {self._needed}")
        raise EngineStartError(
            f"not enough memory for a KV cache: {self._needed}, and --gpu-memory-utilization "
            f"{self.config.gpu_memory_utilization:g} allows {format_bytes(max(0, self.usable_bytes))} in all"
        )

    def check(self, flag: str, num_blocks: int) -> int:
        """`num_blocks`, which `flag` asks for; raises EngineStartError where they do not fit into what is free."""
        if num_blocks * self.block_bytes > self.memory.free_bytes - self.weights_bytes - self.step_bytes:
            raise EngineStartError(
                f"{flag} asks for {format_bytes(num_blocks * self.block_bytes)} of KV cache, but {self._needed}"
            )
        return num_blocks


def what_would_fit(model_config: ModelConfig, config: EngineConfig, memory: DeviceMemory, dtype: str) -> str:
    """Flags with which one request of the whole context fits, or of as much of it as is possible; for an error's text."""
    for candidate_dtype in dict.fromkeys((dtype, "bfloat16")):
        for flags, candidate in _candidates(config):
            proposal = _propose(model_config, candidate, memory, candidate_dtype)
            if proposal is not None:
                if candidate_dtype != dtype:
                    flags = [*flags, f"--dtype {candidate_dtype}"]
                return "what would fit: " + " ".join((*flags, *proposal))
    return "no flag makes it fit: it needs a smaller model or more memory"


def _candidates(config: EngineConfig) -> list[tuple[list[str], EngineConfig]]:
    """The configuration with smaller and smaller steps, and the flags that say so."""
    candidates: list[tuple[list[str], EngineConfig]] = []
    num_tokens, num_seqs = config.max_num_batched_tokens, config.max_num_seqs
    while True:
        flags = []
        if num_tokens != config.max_num_batched_tokens:
            flags.append(f"--max-num-batched-tokens {num_tokens}")
        if num_seqs != config.max_num_seqs:
            flags.append(f"--max-num-seqs {num_seqs}")
        candidates.append((flags, replace(config, max_num_batched_tokens=num_tokens, max_num_seqs=num_seqs)))
        smaller = (
            min(num_tokens, max(SMALLEST_STEP_TOKENS, num_tokens // 2)),
            min(num_seqs, max(SMALLEST_NUM_SEQS, num_seqs // 2)),
        )
        if smaller == (num_tokens, num_seqs):
            return candidates
        num_tokens, num_seqs = smaller


def _propose(model_config: ModelConfig, config: EngineConfig, memory: DeviceMemory, dtype: str) -> list[str] | None:
    """The remaining flags; None where not even a short request finds room."""
    asked_len = config.max_model_len or model_config.default_max_model_len
    step = count_step_memory(model_config, config, dtype=dtype, device=memory.device, max_model_len=asked_len)
    block_bytes = count_block_bytes(model_config, config.block_size, dtype)
    room = Room(config, memory, count_parameters(model_config) * DTYPE_BYTES[dtype], step.total, block_bytes)
    taken_bytes, is_asked = room.weights_bytes + room.step_bytes, _asks_for_blocks(config)
    whole = memory.free_bytes if memory.device == "cpu" else memory.total_bytes
    most_bytes = memory.free_bytes if is_asked else min(memory.free_bytes, int(whole * MAX_UTILIZATION))
    num_free_blocks = (most_bytes - taken_bytes) // block_bytes
    length = longest_request(model_config, config, max(0, num_free_blocks), asked_len)
    if length < 1:
        return None
    flags = [] if config.max_model_len is None or length == asked_len else [f"--max-model-len {length}"]
    if config.num_gpu_blocks_override is not None:
        return [*flags, f"--num-gpu-blocks-override {min(max(1, config.num_gpu_blocks_override), num_free_blocks)}"]
    if config.kv_cache_memory_bytes is not None:
        fitting_bytes = min(max(block_bytes, config.kv_cache_memory_bytes), num_free_blocks * block_bytes)
        return [*flags, f"--kv-cache-memory-bytes {fitting_bytes}"]
    needed_bytes = taken_bytes + blocks_for(model_config, config, length) * block_bytes
    if needed_bytes <= room.usable_bytes:
        return flags
    return [*flags, f"--gpu-memory-utilization {min(MAX_UTILIZATION, math.ceil(needed_bytes / whole * 100) / 100):g}"]


def _asks_for_blocks(config: EngineConfig) -> bool:
    return config.num_gpu_blocks_override is not None or config.kv_cache_memory_bytes is not None
