"""Weights from safetensors files into a model's parameters: one pass, in the order of the files, without a second copy.

Every tensor is accounted for before the first one is copied: one that is missing, left over or of another shape stops the
start with its name. Bytes come through a WeightReader's buffers. On CUDA these are pinned and copied by a stream of their own,
straight to where they belong; only what has another dtype, or is shared out by columns, passes through device memory first.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from .errors import EngineStartError
from .layers import WeightTarget
from .models import CausalLM
from .progress import ByteProgress, format_bytes
from .safetensors_header import TensorEntry
from .weight_files import find_weight_files
from .weight_reader import FilledBuffer, Piece, WeightReader

MAX_NAMED = 5
"""Tensors named in an error; the others are counted."""


def load_weights(model: CausalLM, model_dir: Path, progress: TextIO | None = None, reader: WeightReader | None = None) -> None:
    """Fills every parameter from the checkpoint in `model_dir`; reports to `progress` (None: stderr).

    `reader` reads the tensors of that directory that the model needs, if reading has begun; it is closed in any case. Returns
    when all is in place on the device. Raises EngineStartError for a file that is missing or broken and for tensors that do
    not match the model.
    """
    with reader or WeightReader(find_weight_files(model_dir), model.config.needs_tensor) as source:
        targets = model.weight_targets()
        _check(source.tensors, targets, model, model_dir)
        device = model.place.device
        with (
            ByteProgress("Loading weights", source.total_bytes, progress or sys.stderr) as bar,
            _CudaCopier(device) if device.type == "cuda" else _HostCopier() as copier,
        ):
            for filled in source.filled():
                copier.copy(filled, targets)
                bar.advance(filled.chunk.num_bytes)


def _check(
    tensors: dict[Path, tuple[TensorEntry, ...]], targets: dict[str, WeightTarget], model: CausalLM, model_dir: Path
) -> None:
    architecture = model.config.architecture
    file_of: dict[str, Path] = {}
    for path, entries in tensors.items():
        unexpected = [entry.name for entry in entries if entry.name not in targets]
        if unexpected:
            raise EngineStartError(f"{path} has {_named(unexpected)}, unknown to {architecture}")
        for entry in entries:
            if entry.name in file_of:
                raise EngineStartError(f"tensor {entry.name} is in both {file_of[entry.name]} and {path}")
            file_of[entry.name] = path
            _check_tensor(entry, targets[entry.name], f"{path}: {entry.name}")
    missing = [name for name in targets if name not in file_of]
    if missing:
        raise EngineStartError(f"{model_dir} lacks {_named(missing)} of {architecture}")


def _check_tensor(entry: TensorEntry, target: WeightTarget, where: str) -> None:
    if entry.shape != target.shape:
        raise EngineStartError(f"{where} has shape {list(entry.shape)}, the model needs {list(target.shape)}")
    if entry.dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise EngineStartError(
            f"{where} is torch.{entry.dtype}, not a floating-point tensor of 16 bits or more: "
            "quantized weights are not supported"
        )


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ("tensors " if len(names) > 1 else "tensor ") + ", ".join(sorted(names)[:MAX_NAMED]) + rest


class _HostCopier:
    """Copies out of buffers into parameters on the CPU. A context manager: what was copied is in place when it is left."""

    def __enter__(self) -> _HostCopier:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def copy(self, filled: FilledBuffer, targets: dict[str, WeightTarget]) -> None:
        """Puts the chunk's pieces in place and gives the buffer back."""
        for piece, source in _sources(filled):
            _copy_piece(piece, source, targets[piece.entry.name])
        filled.give_back()


class _CudaCopier:
    """The same to a GPU, by a stream of its own; a buffer is given back when the copies out of the next one are queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned: dict[int, mmap.mmap] = {}
        self._previous: tuple[torch.cuda.Event, FilledBuffer] | None = None

    def __enter__(self) -> _CudaCopier:
        # Memory that was just handed out may still be in use by what the current stream has queued.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.synchronize()
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]

    def copy(self, filled: FilledBuffer, targets: dict[str, WeightTarget]) -> None:
        """Queues the copies of the chunk's pieces."""
        self._pin(filled.memory)
        with torch.cuda.stream(self._stream):
            for piece, source in _sources(filled):
                _copy_piece(piece, source, targets[piece.entry.name])
            event = self._stream.record_event()
        if self._previous is not None:
            previous_event, previous = self._previous
            previous_event.synchronize()
            previous.give_back()
        self._previous = (event, filled)

    def _pin(self, memory: mmap.mmap) -> None:
        """Lets the device read the buffer by itself. Registering what is there costs less than allocating pinned memory."""
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        if whole.data_ptr() in self._pinned:
            return
        code = int(torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.nbytes, 0))  # type: ignore[no-untyped-call]
        if code:
            raise EngineStartError(f"CUDA refuses to pin {format_bytes(whole.nbytes)} of memory (error {code})")
        self._pinned[whole.data_ptr()] = memory


def _sources(filled: FilledBuffer) -> Iterator[tuple[Piece, Tensor]]:
    """Each piece of the chunk and its bytes, uint8 [num_bytes]."""
    whole = torch.frombuffer(filled.memory, dtype=torch.uint8)
    for piece in filled.chunk.pieces:
        start = piece.begin - filled.chunk.begin
        yield piece, whole[start : start + piece.num_bytes]


def _copy_piece(piece: Piece, source: Tensor, target: WeightTarget) -> None:
    """Copies what this rank holds of the piece into its place; on CUDA it is queued on the current stream."""
    dtype: torch.dtype = getattr(torch, piece.entry.dtype)
    shape = (piece.num_rows, *piece.entry.shape[1:]) if piece.entry.shape else ()
    begin, end = piece.first_row, piece.first_row + piece.num_rows  # rows of the whole tensor
    view = target.view
    columns: slice | None = None
    if target.dim == 0 and shape:
        # The rows of the piece that fall into this rank's [start, start + length).
        begin, end = max(begin, target.start), min(end, target.start + target.length)
        if begin >= end:
            return
        row_bytes = piece.num_bytes // piece.num_rows
        source = source[(begin - piece.first_row) * row_bytes : (end - piece.first_row) * row_bytes]
        shape = (end - begin, *shape[1:])
        view = view[begin - target.start : end - target.start]
    elif shape:
        columns = slice(target.start, target.start + target.length)
        view = view[begin:end]
    takes_all = columns is None or target.length == target.shape[target.dim]
    if takes_all and dtype == view.dtype and view.is_contiguous():
        view.view(-1).view(torch.uint8).copy_(source, non_blocking=True)
        return
    moved = source.to(view.device, non_blocking=True)
    if moved.data_ptr() % dtype.itemsize:
        moved = moved.clone()
    values = moved.view(dtype).view(shape)
    view.copy_(values if columns is None else values[:, columns])
