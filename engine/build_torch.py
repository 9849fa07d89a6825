"""The torch half of putting an engine together: device, memory plan, weights, runner.

Reading the weights and making the CUDA context begin before torch is imported and go on beside that: both work without the
interpreter's lock.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .config import EngineConfig
from .cost_model import USUAL_KNEE_TOKENS, ProductTimes, PromptBudgetByCost, knee_tokens
from .cuda_context import begin_cuda_context
from .errors import EngineStartError
from .facts import ModelFacts
from .kernel_cache import keep_kernels
from .kernels_ahead import KernelsAhead
from .memory import MemoryPlan, plan_memory
from .memory_probe import probe_memory
from .model_config import ModelConfig
from .model_files import ModelFiles, cache_dir, resolve_model
from .pacing import FillSteps, PromptBudget
from .plan import Runner
from .start_up import StartUp
from .weight_files import find_weight_files
from .weight_reader import WeightReader

if TYPE_CHECKING:
    import torch

    from .models import CausalLM


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A runner with its model on the device, and what the engine around it must know."""

    facts: ModelFacts
    runner: Runner
    windows: tuple[int | None, ...]
    """Of each KV group."""
    prompt_budget: PromptBudget


def load_model(config: EngineConfig, start_up: StartUp, environment: MutableMapping[str, str]) -> LoadedModel:
    """Loads the model `config` names; raises EngineStartError. What libraries read later is set in `environment`."""
    environment.setdefault("CUDA_MODULE_LOADING", "LAZY")
    context = begin_cuda_context(start_up) if config.device != "cpu" else None
    with start_up.phase("model files"):
        files = resolve_model(config)
        model_config = ModelConfig.from_dir(files.model_dir)
    keep_kernels(environment, cache_dir(config))
    with contextlib.ExitStack() as stack:
        kernels_ahead = None
        if context is not None:
            kernels_ahead = KernelsAhead(config, files.model_dir, model_config, context.device, environment)
            stack.enter_context(kernels_ahead)
        reader = None
        if config.load_format != "dummy":
            with start_up.phase("model files"):
                reader = stack.enter_context(WeightReader(find_weight_files(files.model_dir), model_config.needs_tensor))
        with start_up.phase("imports"):
            from . import make_runner, weights  # noqa: F401  for their time and torch's, which is most of it
        device = choose_device(config)
        dtype = choose_dtype(config, model_config, device)
        with start_up.phase("memory plan"):
            memory_plan = plan_memory(model_config, config, probe_memory(device), dtype)
        with _memory_may_run_out(memory_plan.table()):
            place = _Place(device, kernels_ahead, start_up)
            runner = _build_runner(config, model_config, memory_plan, place, reader, files.model_dir)
    print(memory_plan.table(), file=sys.stderr, flush=True)
    facts = _facts(config, files, model_config, memory_plan, device)
    windows = tuple(group.window for group in model_config.kv_groups)
    return LoadedModel(facts, runner, windows, _prompt_budget(config, model_config, device))


def _prompt_budget(config: EngineConfig, model_config: ModelConfig, device: str) -> PromptBudget:
    """By the cost model on a GPU. On a CPU a prompt token costs as much beside decodes as without."""
    import torch

    if device != "cuda":
        return FillSteps()
    times = ProductTimes.for_device(torch.cuda.get_device_name())
    knee = USUAL_KNEE_TOKENS if times is None else knee_tokens(model_config, times)
    return PromptBudgetByCost(knee, config.max_num_batched_tokens)


def _facts(
    config: EngineConfig, files: ModelFiles, model_config: ModelConfig, memory_plan: MemoryPlan, device: str
) -> ModelFacts:
    return ModelFacts(
        model_dir=str(files.tokenizer_dir),
        served_model_names=files.served_model_names,
        max_model_len=memory_plan.max_model_len,
        vocab_size=model_config.vocab_size,
        eos_token_ids=model_config.eos_token_ids,
        generation_defaults=model_config.generation_defaults,
        block_size=config.block_size,
        num_blocks=memory_plan.num_blocks,
        max_num_seqs=config.max_num_seqs,
        dtype=memory_plan.dtype,
        device=device,
        created_s=int(time.time()),
    )


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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a runner is built."""

    device: str
    kernels_ahead: KernelsAhead | None
    start_up: StartUp


def _build_runner(
    config: EngineConfig,
    model_config: ModelConfig,
    memory_plan: MemoryPlan,
    place: _Place,
    reader: WeightReader | None,
    model_dir: Path,
) -> Runner:
    import torch

    from .make_runner import make_model, make_runner

    device, start_up = torch.device(place.device), place.start_up
    if config.socket_dir is not None:
        # Frontends share the machine. Threads of one operation wait for each other: one that shares its core with a frontend
        # slows all of them down many times.
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(min(torch.get_num_threads(), max(1, num_cores - 1)))
    with torch.inference_mode():
        with start_up.phase("model"):
            model = make_model(config, model_config, memory_plan, device)
        with _WeightLoading(model, model_dir, reader, config.seed, start_up):
            with start_up.phase("KV cache"):
                runner = make_runner(config, model_config, memory_plan, device, model)
            if device.type == "cuda":
                with start_up.phase("libraries"):
                    _wake_libraries(device, model.place.dtype)
                if place.kernels_ahead is not None:
                    with start_up.phase("kernels"):
                        place.kernels_ahead.wait()
        with start_up.phase("graphs"):
            runner.prepare()
        return runner


def _wake_libraries(device: torch.device, dtype: torch.dtype) -> None:
    """Has cuBLAS make its handle and workspace and Triton imported beside the weights' loading."""
    import torch

    from ..kernels import triton_products  # noqa: F401  for Triton's time

    square = torch.ones(256, 256, dtype=dtype, device=device)
    torch.mm(square, square)


class _WeightLoading:
    """Fills a model with weights in a thread while the `with` block runs, whose end waits for it and raises what went wrong."""

    def __init__(self, model: CausalLM, model_dir: Path, reader: WeightReader | None, seed: int, start_up: StartUp) -> None:
        """Without a `reader` the weights are made up from `seed`."""
        self._model, self._model_dir, self._reader, self._seed, self._start_up = model, model_dir, reader, seed, start_up
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._load, name="load-weights")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._give_up()
            return
        try:
            self._thread.join()
        except BaseException:  # a signal ends the start, and need not wait for the disk
            self._give_up()
            raise
        if self._error is not None:
            raise self._error

    def _give_up(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._thread.join()

    def _load(self) -> None:
        import torch

        from .dummy_weights import fill_with_dummy_weights
        from .weights import load_weights

        try:
            with torch.inference_mode():
                if self._reader is None:
                    with self._start_up.phase("weights made"):
                        fill_with_dummy_weights(self._model, self._seed)
                    return
                with self._start_up.phase("weights copied"):
                    load_weights(self._model, self._model_dir, reader=self._reader)
                self._start_up.note("weights read", self._reader.read_s)
        except BaseException as error:  # raised again by the thread that waits
            self._error = error
