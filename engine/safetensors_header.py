"""Headers of safetensors files: which tensor lies where, in the order of the file. No torch here.

A file is a header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, data_offsets) and the tensors'
bytes without gaps, as https://github.com/huggingface/safetensors describes it. A file that is anything else, or shorter or
longer than its header says, is refused before a tensor is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from .errors import EngineStartError

MAX_HEADER_BYTES = 100_000_000
"""As the reference implementation has it."""
_LENGTH_BYTES = 8
TORCH_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""What torch calls the formats."""
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Of the formats that weights are in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file."""

    name: str
    format: str
    """As the file calls its dtype: a key of TORCH_DTYPES, or something newer."""
    shape: tuple[int, ...]
    begin: int
    """Of its bytes, counted from the start of the file."""
    end: int

    @property
    def dtype(self) -> str:
        """As torch calls it."""
        return TORCH_DTYPES.get(self.format, self.format)

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return self.end - self.begin


def unreadable(path: Path, reason: object) -> EngineStartError:
    """The error for a weight file that cannot be read."""
    return EngineStartError(f"cannot read the weight file {path}: {reason}; it may be incomplete, fetch it again")


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """The file's tensors in the order of their bytes; raises EngineStartError."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            length_bytes = file.read(_LENGTH_BYTES)
            header_bytes = int.from_bytes(length_bytes, "little")
            if len(length_bytes) < _LENGTH_BYTES or header_bytes > min(MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES):
                raise unreadable(path, "it has no complete header")
            header = json.loads(file.read(header_bytes))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(header, dict):
        raise unreadable(path, "its header is no table of tensors")
    data_begin = _LENGTH_BYTES + header_bytes
    try:
        entries = [_entry(name, fields, data_begin) for name, fields in header.items() if name != "__metadata__"]
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path, f"its header is damaged ({type(error).__name__}: {error})") from error
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_coverage(path, entries, data_begin, file_bytes)
    return tuple(entries)


def _entry(name: str, fields: dict[str, object], data_begin: int) -> TensorEntry:
    form, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(form, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError(name)
    begin, end = offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has a size that is no whole number")
    item_bytes = _ITEM_BYTES.get(form)
    if item_bytes is not None and end - begin != math.prod(shape) * item_bytes:
        raise ValueError(f"{name} has {end - begin} bytes for {form} {shape}")
    return TensorEntry(name=name, format=form, shape=tuple(shape), begin=data_begin + begin, end=data_begin + end)


def _check_coverage(path: Path, entries: list[TensorEntry], data_begin: int, file_bytes: int) -> None:
    """Tensors follow each other without gap or overlap and end where the file does."""
    position = data_begin
    for entry in entries:
        if entry.begin != position or entry.end < entry.begin:
            raise unreadable(path, f"its header is damaged (the bytes of {entry.name} overlap another's or leave a gap)")
        position = entry.end
    if position != file_bytes:
        raise unreadable(path, f"it has {file_bytes} bytes, its header speaks of {position}")
