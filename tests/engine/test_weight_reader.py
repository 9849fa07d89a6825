"""Headers are read as they are written, files are cut between rows, and every byte arrives once and in order."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from penstock.engine.errors import EngineStartError
from penstock.engine.safetensors_header import TensorEntry, read_header
from penstock.engine.weight_reader import NUM_BUFFERS, WeightReader, plan_chunks

TENSORS = {
    "matrix": torch.arange(7 * 5, dtype=torch.float32).view(7, 5),
    "vector": torch.arange(33, dtype=torch.bfloat16),
    "number": torch.tensor(3.5, dtype=torch.float16),
    "nothing": torch.zeros(0, 4),
    "cube": torch.arange(24, dtype=torch.float64).view(2, 3, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


def write_raw(path: Path, header: object, num_data_bytes: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_data_bytes))
    return path


def test_a_header_says_what_lies_where(path: Path) -> None:
    data = path.read_bytes()
    entries = read_header(path)
    assert {entry.name: (getattr(torch, entry.dtype), entry.shape) for entry in entries} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()
    }
    for entry in entries:
        assert data[entry.begin : entry.end] == TENSORS[entry.name].view(-1).view(torch.uint8).numpy().tobytes()
    assert [entry.begin for entry in entries] == sorted(entry.begin for entry in entries)


@pytest.mark.parametrize(
    ("header", "num_data_bytes", "reason"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 4, "it has [0-9]+ bytes, its header speaks of"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 9, "its header speaks of"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8, r"a has 8 bytes for F32 \[3\]"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12, "leave a gap"),
        ({"a": {"dtype": "I8", "shape": [-8], "data_offsets": [0, 8]}}, 8, "no whole number"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "damaged .*data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, 8, "damaged"),
        ({"a": 5}, 0, "damaged"),
        ([1], 0, "no table of tensors"),
    ],
)
def test_a_damaged_header_is_refused(header: object, num_data_bytes: int, reason: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, num_data_bytes)
    with pytest.raises(EngineStartError, match=rf"cannot read the weight file .*{reason}.*fetch it again"):
        read_header(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(EngineStartError, match="no complete header"):
        read_header(path)


@pytest.mark.parametrize("buffer_bytes", [1, 20, 50, 64, 1 << 20])
def test_chunks_are_cut_between_rows_and_cover_everything(buffer_bytes: int, path: Path) -> None:
    entries = read_header(path)
    chunks = plan_chunks(path, entries, buffer_bytes)
    rows: dict[str, list[int]] = {entry.name: [] for entry in entries}
    end = entries[0].begin
    for chunk in chunks:
        assert chunk.begin == end
        assert chunk.num_bytes <= buffer_bytes or (len(chunk.pieces) == 1 and chunk.pieces[0].num_rows == 1)
        for piece in chunk.pieces:
            assert piece.begin == end
            end += piece.num_bytes
            rows[piece.entry.name].extend(range(piece.first_row, piece.first_row + piece.num_rows))
        assert end == chunk.begin + chunk.num_bytes
    assert end == path.stat().st_size
    assert rows == {"matrix": [*range(7)], "vector": [*range(33)], "number": [0], "nothing": [], "cube": [0, 1]}


def test_what_is_not_wanted_is_not_read(path: Path) -> None:
    with WeightReader([path], lambda name: name != "vector", buffer_bytes=1 << 20) as reader:
        names = [piece.entry.name for filled in reader.filled() for piece in filled.chunk.pieces]
        assert reader.total_bytes == path.stat().st_size - read_header(path)[0].begin - 66
    assert sorted(names) == ["cube", "matrix", "number"]


@pytest.mark.parametrize("buffer_bytes", [16, 50, 1 << 20])
def test_every_byte_arrives_once_and_in_order(buffer_bytes: int, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"z": torch.randn(100, 3)}, other)
    with WeightReader([path, other], lambda _: True, buffer_bytes=buffer_bytes) as reader:
        assert len(reader.buffers) <= NUM_BUFFERS
        read = {path: b"", other: b""}
        for filled in reader.filled():
            read[filled.chunk.path] += filled.memory[: filled.chunk.num_bytes]
            filled.give_back()
    for file, data in read.items():
        assert data == file.read_bytes()[read_header(file)[0].begin :]


def test_a_file_that_shrinks_while_it_is_read_is_named(path: Path) -> None:
    with WeightReader([path], lambda _: True, buffer_bytes=16) as reader:
        os.truncate(path, read_header_end(path) + 40)
        with pytest.raises(EngineStartError, match=r"model.safetensors: it has become shorter"):
            drain(reader)


def drain(reader: WeightReader) -> None:
    for filled in reader.filled():
        filled.give_back()


def read_header_end(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_leaving_ends_the_reading(path: Path) -> None:
    num_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with WeightReader([path], lambda _: True, buffer_bytes=16) as reader:
        next(reader.filled())
    assert len(os.listdir("/proc/self/fd")) == num_open  # noqa: PTH208


def test_whoever_waits_is_released_when_reading_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_read = threading.Event()
    preadv = os.preadv

    def slow_preadv(*arguments: Any) -> int:
        may_read.wait(10)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", slow_preadv)
    reader = WeightReader([path], lambda _: True, buffer_bytes=16)
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            drain(reader)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    closing = threading.Thread(target=reader.close)
    closing.start()
    while not reader._is_closed:
        time.sleep(0.001)
    may_read.set()
    thread.join(10)
    closing.join(10)
    assert not thread.is_alive()
    assert not closing.is_alive()


def test_an_entry_counts_its_bytes() -> None:
    assert TensorEntry(name="a", format="F32", shape=(2,), begin=10, end=18).num_bytes == 8
