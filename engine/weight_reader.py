"""Reads weight files into a few buffers, by several threads at once, ahead of whoever copies out of them. No torch here.

Reading begins when the reader is made, so that it goes on beside slow imports and the set-up of a device: `preadv` works
without the interpreter's lock. Buffers are handed out in the order of the files and filled anew once they are given back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .errors import EngineStartError
from .safetensors_header import TensorEntry, read_header, unreadable

BUFFER_BYTES = 64 << 20
NUM_BUFFERS = 4
NUM_THREADS = 8
READ_BYTES = 8 << 20
"""Of one call: large enough that a thread seldom needs the interpreter's lock, small enough that all share a buffer's work."""
NUM_CHUNKS_AHEAD = 64
"""So far beyond the buffers the system is asked to fetch from the disk; not all at once, which could push out what is next."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a tensor (numbers of one that has no dimensions), whole in one buffer."""

    path: Path
    entry: TensorEntry
    first_row: int
    num_rows: int
    begin: int
    """Of its bytes in the file."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a file that are read into one buffer together."""

    path: Path
    begin: int
    num_bytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class FilledBuffer:
    """A chunk in memory. Whoever takes it gives it back."""

    chunk: Chunk
    memory: mmap.mmap
    """Begins with the chunk's first byte; longer than the chunk."""
    give_back: Callable[[], None]
    """To be called once, when nothing reads the memory any more."""


def plan_chunks(path: Path, entries: Sequence[TensorEntry], buffer_bytes: int) -> list[Chunk]:
    """Cuts a file's tensors, between rows, into chunks of at most `buffer_bytes` (more only where one row has more)."""
    chunks: list[Chunk] = []
    pieces: list[Piece] = []

    def close() -> None:
        if pieces:
            begin = pieces[0].begin
            chunks.append(Chunk(path, begin, pieces[-1].begin + pieces[-1].num_bytes - begin, tuple(pieces)))
            pieces.clear()

    for entry in entries:
        num_rows = entry.shape[0] if entry.shape else 1
        row_bytes = entry.num_bytes // num_rows if num_rows else 0
        row = 0
        while row < num_rows and row_bytes:
            begin = entry.begin + row * row_bytes
            if pieces and pieces[-1].begin + pieces[-1].num_bytes != begin:
                close()
            left_bytes = buffer_bytes - (begin - pieces[0].begin if pieces else 0)
            if pieces and left_bytes < row_bytes:
                close()
                continue
            count = min(num_rows - row, max(1, left_bytes // row_bytes))
            pieces.append(Piece(path, entry, row, count, begin, count * row_bytes))
            row += count
    close()
    return chunks


class WeightReader:
    """Reads the tensors of `files` that `is_wanted` says yes to. A context manager: leaving it ends the reading.

    Raises EngineStartError at once for a header that is broken; `filled` raises it for what goes wrong later.
    """

    def __init__(
        self,
        files: Sequence[Path],
        is_wanted: Callable[[str], bool],
        *,
        buffer_bytes: int = BUFFER_BYTES,
        num_threads: int = NUM_THREADS,
    ) -> None:
        self.tensors = {path: tuple(entry for entry in read_header(path) if is_wanted(entry.name)) for path in files}
        chunks = [chunk for path, entries in self.tensors.items() for chunk in plan_chunks(path, entries, buffer_bytes)]
        self.total_bytes = sum(chunk.num_bytes for chunk in chunks)
        size = max((chunk.num_bytes for chunk in chunks), default=0)
        self.buffers = [mmap.mmap(-1, size) for _ in range(min(NUM_BUFFERS, len(chunks)))]
        for buffer in self.buffers:
            with contextlib.suppress(OSError):  # a kernel without them
                buffer.madvise(mmap.MADV_HUGEPAGE)  # far fewer pages to fault in and to pin
        self.read_s = 0.0
        """From the beginning to the last byte read so far, waits for buffers included."""
        self._waiting, self._to_fetch = deque(chunks), deque(chunks)
        self._in_work: deque[tuple[Chunk, mmap.mmap, list[Future[None]]]] = deque()
        self._files: dict[Path, int] = {}
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="weights")
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="weights-ahead")
        self._lock = threading.Lock()
        self._is_closed = False
        self._began_s = time.monotonic()
        for buffer in self.buffers:
            self._fill(buffer)

    def filled(self) -> Iterator[FilledBuffer]:
        """Every chunk once, in the order of the files; waits for reads, and for buffers that were not yet given back."""
        while True:
            with self._lock:
                if not self._in_work:
                    assert not self._waiting, "a buffer has not been given back"
                    return
                chunk, buffer, reads = self._in_work.popleft()
            for read in reads:
                read.result()
            yield FilledBuffer(chunk, buffer, lambda buffer=buffer: self._fill(buffer))  # type: ignore[misc]

    def _fill(self, buffer: mmap.mmap) -> None:
        """Starts reading the next chunk into `buffer`."""
        with self._lock:
            if self._is_closed or not self._waiting:
                return
            chunk = self._waiting.popleft()
            spans = [(at, min(READ_BYTES, chunk.num_bytes - at)) for at in range(0, chunk.num_bytes, READ_BYTES)]
            reads = [self._threads.submit(self._read, chunk, buffer, at, num_bytes) for at, num_bytes in spans]
            self._in_work.append((chunk, buffer, reads))
            while self._to_fetch and len(self._waiting) - len(self._to_fetch) < NUM_CHUNKS_AHEAD:
                self._fetcher.submit(self._fetch, self._to_fetch.popleft())

    def _fetch(self, chunk: Chunk) -> None:
        """Asks the system to have these bytes in memory soon."""
        with contextlib.suppress(OSError, EngineStartError):
            os.posix_fadvise(self._open(chunk.path), chunk.begin, chunk.num_bytes, os.POSIX_FADV_WILLNEED)

    def _read(self, chunk: Chunk, buffer: mmap.mmap, at: int, num_bytes: int) -> None:
        """Fills buffer[at : at + num_bytes] with those bytes of the chunk."""
        try:
            descriptor = self._open(chunk.path)
            with memoryview(buffer) as whole, whole[at : at + num_bytes] as part:
                done = 0
                while done < num_bytes:
                    with part[done:] as rest:
                        count = os.preadv(descriptor, [rest], chunk.begin + at + done)
                    if count == 0:
                        raise unreadable(chunk.path, "it has become shorter")
                    done += count
            self.read_s = time.monotonic() - self._began_s
        except OSError as error:
            raise unreadable(chunk.path, error) from error

    def _open(self, path: Path) -> int:
        with self._lock:
            if self._is_closed:
                raise EngineStartError("loading was given up")
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[path]

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading; the buffers' memory goes with the last reference to it."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._fetcher.shutdown(wait=True, cancel_futures=True)
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
