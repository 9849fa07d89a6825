"""A process that compiles its share of an engine's kernels and ends; see kernels_ahead.

All such processes find the same kernels in the same order. Each takes the next one that none has claimed, heavy ones first.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..kernels.triton_compile import DeviceProperties, find_kernels, pretend_device
from .build_torch import choose_dtype
from .kernels_ahead import KernelJob
from .make_runner import make_model, make_runner
from .memory import plan_memory
from .memory_probe import DeviceMemory
from .model_config import ModelConfig

NICENESS = 5
"""Where there are few cores, the engine's own start goes first."""


def main() -> int:
    """Takes a job from standard input; returns the exit code, 1 where a kernel could not be compiled."""
    os.nice(NICENESS)
    job = KernelJob.from_line(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, args=(job,), name="end-with-input", daemon=True).start()
    error: Exception | None = None
    try:
        for compile_one in claimed(find(job), Path(job.claims_dir)):
            try:
                compile_one()
            except Exception as failure:
                error = failure
    except Exception as failure:
        error = failure
    if error is not None:
        print(f"A kernel could not be compiled ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return int(error is not None)


def find(job: KernelJob) -> list[Callable[[], object]]:
    """What compiles the kernels of the steps that the job's engine will run."""
    device = job.device
    properties = DeviceProperties(
        major=device.major,
        minor=device.minor,
        multi_processor_count=device.num_multiprocessors,
        shared_memory_per_block_optin=device.shared_bytes,
    )
    pretend_device(properties)
    whole_config = ModelConfig.from_dir(Path(job.model_dir))
    dtype = choose_dtype(job.config, whole_config, "cuda")
    memory = DeviceMemory("cuda", device.total_bytes, device.total_bytes)
    memory_plan = plan_memory(whole_config, job.config, memory, dtype)
    model_config, nowhere = with_layers_that_differ(whole_config), torch.device("meta")
    with torch.inference_mode():
        model = make_model(job.config, model_config, memory_plan, nowhere)
        runner = make_runner(job.config, model_config, memory_plan, nowhere, model)
        kernels: list[Callable[[], object]] = find_kernels(runner.kernel_calls())
    return kernels


def with_layers_that_differ(config: ModelConfig) -> ModelConfig:
    """The model with no more layers than launch all kernels: the first, which has no residual, one that has, one per window."""
    last_first = max(group.layers[0] for group in config.kv_groups)
    num_layers = min(config.num_layers, max(2, last_first + 1))
    return replace(config, num_layers=num_layers, layer_windows=config.layer_windows[:num_layers])


def claimed(kernels: Sequence[Callable[[], object]], claims_dir: Path) -> Iterator[Callable[[], object]]:
    """Those that no other process has claimed, each claimed when it is asked for."""
    for index, compile_one in enumerate(kernels):
        try:
            (claims_dir / str(index)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield compile_one


def _end_with_input(job: KernelJob) -> None:
    """The engine writes nothing more: the end of the input is its own, and it left what it would have removed."""
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(job.claims_dir, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
