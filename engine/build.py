"""Puts an engine together from its configuration: finds the model, loads it, sizes the KV cache, joins runner and scheduler.

Says on stderr what it is doing. Everything that imports torch is imported in here, and only for models that need it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .admission import Limits
from .config import EngineConfig
from .core import EngineCore
from .errors import EngineStartError
from .facts import ModelFacts
from .kv_blocks import KVBlocks
from .metrics import EngineMetrics
from .pacing import TimedRunAhead
from .plan import Runner
from .scheduler import Scheduler
from .toy_config import TOY_ARCHITECTURE, ToyConfig
from .toy_runner import ToyRunner

if TYPE_CHECKING:
    from .model_config import ModelConfig

TOY_NUM_BLOCKS = 4096


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that can generate."""

    core: EngineCore
    facts: ModelFacts


def load_engine(config: EngineConfig) -> LoadedEngine:
    """Builds the engine; raises EngineStartError with one clear line when it cannot run as asked."""
    for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
        if getattr(config, name) < 1:
            raise EngineStartError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < config.gpu_memory_utilization <= 1:
        raise EngineStartError(f"--gpu-memory-utilization must be above 0 and at most 1, not {config.gpu_memory_utilization:g}")
    toy_dir = _toy_dir(config)
    return _load_torch(config) if toy_dir is None else _load_toy(config, toy_dir)


def _toy_dir(config: EngineConfig) -> Path | None:
    """The model's directory if it is a toy."""
    path = Path(config.model) if config.model is not None else None
    if path is None or not (path / "config.json").is_file():
        return None
    try:
        raw = json.loads((path / "config.json").read_bytes())
    except (ValueError, RecursionError):
        return None
    return path.resolve() if isinstance(raw, dict) and raw.get("architectures") == [TOY_ARCHITECTURE] else None


def _load_toy(config: EngineConfig, model_dir: Path) -> LoadedEngine:
    toy = ToyConfig.from_dir(model_dir)
    num_blocks = config.num_gpu_blocks_override or TOY_NUM_BLOCKS
    num_tokens = num_blocks // len(toy.windows) * config.block_size
    facts = ModelFacts(
        model_dir=str(model_dir),
        served_model_names=config.served_model_names or (str(config.model),),
        max_model_len=_bounded(config.max_model_len, min(toy.max_position_embeddings, num_tokens)),
        vocab_size=toy.vocab_size,
        eos_token_ids=() if toy.eos_token_id is None else (toy.eos_token_id,),
        generation_defaults={},
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        dtype="int32",
        device="cpu",
        created_s=int(time.time()),
    )
    runner = ToyRunner(toy, num_blocks=num_blocks, block_size=config.block_size)
    return _join(config, facts, runner, toy.windows)


def _bounded(max_model_len: int | None, longest: int) -> int:
    if max_model_len is not None and max_model_len > longest:
        raise EngineStartError(
            f"--max-model-len {max_model_len} is longer than the {longest} tokens that model and KV cache allow"
        )
    return max_model_len or longest


def _load_torch(config: EngineConfig) -> LoadedEngine:
    from .memory import plan_memory
    from .memory_probe import probe_memory
    from .model_config import ModelConfig
    from .model_files import resolve_model

    files = resolve_model(config)
    model_config = ModelConfig.from_dir(files.model_dir)
    device = choose_device(config)
    dtype = choose_dtype(config, model_config, device)
    memory_plan = plan_memory(model_config, config, probe_memory(device), dtype)
    with _memory_may_run_out(memory_plan.table()):
        runner = _build_runner(
            config, model_config, files.model_dir, device, dtype, memory_plan.num_blocks, memory_plan.max_model_len
        )
    _say(memory_plan.table())
    facts = ModelFacts(
        model_dir=str(files.tokenizer_dir),
        served_model_names=files.served_model_names,
        max_model_len=memory_plan.max_model_len,
        vocab_size=model_config.vocab_size,
        eos_token_ids=model_config.eos_token_ids,
        generation_defaults=model_config.generation_defaults,
        block_size=config.block_size,
        num_blocks=memory_plan.num_blocks,
        max_num_seqs=config.max_num_seqs,
        dtype=dtype,
        device=device,
        created_s=int(time.time()),
    )
    return _join(config, facts, runner, [group.window for group in model_config.kv_groups])


@contextlib.contextmanager
def _memory_may_run_out(table: str) -> Iterator[None]:
    """The plan fits what was free when it was made; limits it does not know of and other processes may have less left."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a bare RuntimeError.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise EngineStartError(
                "there is less memory than was planned with; lower --kv-cache-memory-bytes or --max-num-batched-tokens\n"
                + table
            ) from error
        raise


def choose_device(config: EngineConfig) -> str:
    """The device "auto" stands for; raises EngineStartError where cuda is asked for and there is none."""
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise EngineStartError("--device cuda: torch finds no CUDA device")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def choose_dtype(config: EngineConfig, model_config: ModelConfig, device: str) -> str:
    """The checkpoint's own on cuda; float32, which is as fast and exact, on cpu."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if device == "cpu" else model_config.dtype


def _build_runner(
    config: EngineConfig,
    model_config: ModelConfig,
    model_dir: Path,
    device_name: str,
    dtype_name: str,
    num_blocks: int,
    max_model_len: int,
) -> Runner:
    import torch

    from .model_runner import ModelRunner
    from .models import build_model
    from .weights import fill_with_dummy_weights, load_weights

    device = torch.device(device_name)
    dtype: torch.dtype = getattr(torch, dtype_name)
    if config.socket_dir is not None:
        # Frontends share the machine. Threads of one operation wait for each other: one that shares its core with a frontend
        # slows all of them down many times.
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(min(torch.get_num_threads(), max(1, num_cores - 1)))
    with torch.inference_mode():
        model = build_model(model_config, device=device, dtype=dtype, max_model_len=max_model_len)
        if config.load_format == "dummy":
            _say("Making random weights")
            fill_with_dummy_weights(model, config.seed)
        else:
            load_weights(model, model_dir)
        return ModelRunner(
            model,
            model_config,
            device=device,
            dtype=dtype,
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
        )


def _join(config: EngineConfig, facts: ModelFacts, runner: Runner, windows: Sequence[int | None]) -> LoadedEngine:
    limits = Limits(
        vocab_size=facts.vocab_size,
        max_model_len=facts.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        eos_token_ids=frozenset(facts.eos_token_ids),
    )
    blocks = KVBlocks(
        num_blocks=facts.num_blocks,
        block_size=config.block_size,
        windows=windows,
        max_step_tokens=config.max_num_batched_tokens,
        caches_prefixes=config.enable_prefix_caching,
    )
    run_ahead = TimedRunAhead(num_in_flight=2 if config.async_scheduling else 1)
    scheduler = Scheduler(limits, blocks, EngineMetrics(), run_ahead=run_ahead)
    return LoadedEngine(EngineCore(scheduler, runner, overlap=config.async_scheduling), facts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
