"""`penstock info`: versions, devices, and how a model would fit into this machine's memory."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from . import __version__
from .engine.config import EngineConfig
from .engine.errors import EngineStartError
from .flags import USAGE_ERROR

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "fastapi", "uvicorn", "pyzmq")


def run(config: EngineConfig) -> int:
    """Prints to stdout; returns the exit code, 2 for a model that cannot run here (stderr says why)."""
    for name, value in [("penstock", __version__), ("python", platform.python_version()), *_package_versions(), *_devices()]:
        print(f"{name:<13} {value}")
    print(flush=True)
    try:
        print("\n".join(_describe_model(config)))
    except EngineStartError as error:
        print(f"penstock info: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _package_versions() -> list[tuple[str, str]]:
    versions = []
    for package in PACKAGES:
        try:
            versions.append((package, version(package)))
        except PackageNotFoundError:
            versions.append((package, "not installed"))
    return versions


def _devices() -> list[tuple[str, str]]:
    import torch

    from .engine.memory_probe import probe_memory
    from .engine.progress import format_bytes

    cpu = probe_memory("cpu")
    devices = [
        ("cpu", f"{torch.get_num_threads()} threads, {format_bytes(cpu.free_bytes)} of {format_bytes(cpu.total_bytes)} free")
    ]
    for index in range(torch.cuda.device_count()):
        gpu = probe_memory(f"cuda:{index}")
        name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        free = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
        devices.append((f"cuda:{index}", f"{name}, compute capability {major}.{minor}, CUDA {torch.version.cuda}, {free}"))
    return devices


def _describe_model(config: EngineConfig) -> list[str]:
    """The model and its memory plan, from its small files alone: no weights are fetched or read."""
    from .engine.build_torch import choose_device, choose_dtype
    from .engine.memory import plan_memory
    from .engine.memory_probe import probe_memory
    from .engine.model_config import ModelConfig
    from .engine.model_files import resolve_model
    from .engine.model_memory import count_parameters

    files = resolve_model(replace(config, load_format="dummy"))
    model_config = ModelConfig.from_dir(files.model_dir)
    device = choose_device(config)
    plan = plan_memory(model_config, config, probe_memory(device), choose_dtype(config, model_config, device))
    parameters = f"{count_parameters(model_config):,} parameters"
    return [
        f"{files.served_model_names[0]}: {model_config.architecture}, {parameters}, on {device}",
        plan.table(),
    ]
