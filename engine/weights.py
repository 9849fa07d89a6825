"""Weights from safetensors files into a model's parameters, file by file, without a second copy of the whole.

Every tensor is accounted for: one that is missing, left over or of another shape stops the start with its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

import torch
from safetensors import SafetensorError, safe_open

from .errors import EngineStartError
from .layers import WeightTarget
from .models import CausalLM
from .progress import ByteProgress
from .weight_files import find_weight_files

MAX_NAMED = 5
"""Tensors named in an error; the others are counted."""


def load_weights(model: CausalLM, model_dir: Path, progress: TextIO | None = None) -> None:
    """Fills every parameter from the checkpoint in `model_dir`; reports to `progress` (None: stderr).

    Each tensor is read from its file (only the rows or columns of this rank), converted on the way and copied into its place.
    Raises EngineStartError for a file that is missing or broken and for tensors that do not match the model.
    """
    files = find_weight_files(model_dir)
    targets = model.weight_targets()
    file_of: dict[str, Path] = {}
    total_bytes = sum(path.stat().st_size for path in files)
    with ByteProgress("Loading weights", total_bytes, progress or sys.stderr) as bar:
        for path in files:
            for name in _load_file(path, model, targets, bar):
                if name in file_of:
                    raise EngineStartError(f"tensor {name} is in both {file_of[name]} and {path}")
                file_of[name] = path
    missing = [name for name in targets if name not in file_of]
    if missing:
        raise EngineStartError(f"{model_dir} lacks {_named(missing)} of {model.config.architecture}")


def _load_file(path: Path, model: CausalLM, targets: dict[str, WeightTarget], bar: ByteProgress) -> list[str]:
    """Copies all tensors of one file into place; the names of those it found targets for."""
    loaded, unexpected = [], []
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118
                if name in targets:
                    bar.advance(_copy(file.get_slice(name), targets[name], f"{path}: {name}"))
                    loaded.append(name)
                elif not _ignorable(name, model):
                    unexpected.append(name)
    except (OSError, SafetensorError) as error:
        raise EngineStartError(f"cannot read the weight file {path}: {error}; it may be incomplete, fetch it again") from error
    if unexpected:
        raise EngineStartError(f"{path} has {_named(unexpected)}, unknown to {model.config.architecture}")
    return loaded


def _copy(source: object, target: WeightTarget, where: str) -> int:
    """Copies this rank's part; returns how many bytes were read."""
    shape = tuple(source.get_shape())  # type: ignore[attr-defined]
    if shape != target.shape:
        raise EngineStartError(f"{where} has shape {list(shape)}, the model needs {list(target.shape)}")
    index = [slice(None)] * len(shape)
    index[target.dim] = slice(target.start, target.start + target.length)
    tensor: torch.Tensor = source[tuple(index)]  # type: ignore[index]
    if not tensor.is_floating_point():
        raise EngineStartError(f"{where} is {tensor.dtype}, not a floating-point tensor: quantized weights are not supported")
    target.view.copy_(tensor)
    return tensor.nbytes


def _ignorable(name: str, model: CausalLM) -> bool:
    """Tensors that old checkpoints carry and nobody needs: rotary tables, and a tied output head saved beside its embedding."""
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and model.config.tie_word_embeddings)


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ("tensors " if len(names) > 1 else "tensor ") + ", ".join(sorted(names)[:MAX_NAMED]) + rest


def fill_with_dummy_weights(model: CausalLM, seed: int) -> None:
    """Random weights of a scale that keeps activations near 1, made on the device: norms are ones, matrices normal.

    The standard deviation is 1 / sqrt(inputs), so logits have one of about 1; the same seed gives the same weights on one
    kind of device.
    """
    generator = torch.Generator(model.place.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.1, generator=generator)
        else:
            parameter.fill_(1.0)
