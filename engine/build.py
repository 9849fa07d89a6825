"""Puts an engine together from its configuration: a runner with a model, a scheduler, and a first generation to try them.

Says on stderr what it is doing. Everything that imports torch is imported only for models that need it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .admission import Limits
from .config import EngineConfig
from .core import EngineCore
from .errors import EngineStartError
from .facts import ModelFacts
from .kv_blocks import KVBlocks
from .metrics import EngineMetrics
from .pacing import FillSteps, PromptBudget, TimedRunAhead
from .plan import Runner
from .scheduler import Scheduler
from .start_up import StartUp
from .toy_config import TOY_ARCHITECTURE, ToyConfig
from .toy_runner import ToyRunner
from .warm_up import warm_up

TOY_NUM_BLOCKS = 4096


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that can generate."""

    core: EngineCore
    facts: ModelFacts


def load_engine(config: EngineConfig, start_up: StartUp | None = None) -> LoadedEngine:
    """Builds the engine; raises EngineStartError with one clear line when it cannot run as asked.

    `start_up` takes the times; the engine's metrics show them.
    """
    start_up = start_up or StartUp()
    for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
        if getattr(config, name) < 1:
            raise EngineStartError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < config.gpu_memory_utilization <= 1:
        raise EngineStartError(f"--gpu-memory-utilization must be above 0 and at most 1, not {config.gpu_memory_utilization:g}")
    toy_dir = _toy_dir(config)
    return _load_torch(config, start_up) if toy_dir is None else _load_toy(config, toy_dir, start_up)


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


def _load_toy(config: EngineConfig, model_dir: Path, start_up: StartUp) -> LoadedEngine:
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
    return LoadedEngine(_join(config, facts, runner, toy.windows, start_up, FillSteps()), facts)


def _bounded(max_model_len: int | None, longest: int) -> int:
    if max_model_len is not None and max_model_len > longest:
        raise EngineStartError(
            f"--max-model-len {max_model_len} is longer than the {longest} tokens that model and KV cache allow"
        )
    return max_model_len or longest


def _load_torch(config: EngineConfig, start_up: StartUp) -> LoadedEngine:
    from .build_torch import load_model

    model = load_model(config, start_up, os.environ)
    with start_up.phase("warm-up"):
        warm_up(_join(config, model.facts, model.runner, model.windows, start_up, model.prompt_budget))
    return LoadedEngine(_join(config, model.facts, model.runner, model.windows, start_up, model.prompt_budget), model.facts)


def _join(
    config: EngineConfig,
    facts: ModelFacts,
    runner: Runner,
    windows: Sequence[int | None],
    start_up: StartUp,
    prompt_budget: PromptBudget,
) -> EngineCore:
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
    scheduler = Scheduler(limits, blocks, EngineMetrics(start_up.seconds), prompt_budget=prompt_budget, run_ahead=run_ahead)
    return EngineCore(scheduler, runner, overlap=config.async_scheduling)
