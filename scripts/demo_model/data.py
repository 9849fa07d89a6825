"""Batches of packed conversations: a pure function of (seed, step), made ahead by worker processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .generate import LONG_CHARS, SHORT_CHARS, conversations
from .tokenizer import END_OF_TEXT, token_id

Batch = npt.NDArray[np.uint16]  # (rows, row length): token ids of whole conversations, each followed by <|endoftext|>

SHORT_ROW, LONG_ROW = 1024, 4096
LONG_EVERY = 6  # every sixth batch has long rows
BUFFER = 32  # conversations to choose from when filling a row


def make_batch(tokenizer: Tokenizer, seed: str, step: int, num_tokens: int) -> Batch:
    """The batch of one step."""
    num_rows, row_length = rows_of(step, num_tokens)
    texts = conversations(f"{seed}/{step}", LONG_CHARS if row_length == LONG_ROW else SHORT_CHARS)
    return pack(encoded(tokenizer, texts, row_length), num_rows, row_length, token_id(tokenizer, END_OF_TEXT))


def rows_of(step: int, num_tokens: int) -> tuple[int, int]:
    """Number and length of the rows of a step."""
    row_length = LONG_ROW if step % LONG_EVERY == LONG_EVERY - 1 else SHORT_ROW
    return max(1, num_tokens // row_length), row_length


def encoded(tokenizer: Tokenizer, texts: Iterator[str], longest: int) -> Iterator[list[int]]:
    """Token ids of the texts that fit into a row."""
    for text in texts:
        ids = tokenizer.encode(text + END_OF_TEXT, add_special_tokens=False).ids
        if len(ids) <= longest:
            yield ids


def pack(documents: Iterator[list[int]], num_rows: int, row_length: int, fill: int) -> Batch:
    """Rows of whole documents: a row takes from a small buffer what still fits, and is filled up at its end."""
    rows = np.full((num_rows, row_length), fill, dtype=np.uint16)
    buffer = [next(documents) for _ in range(BUFFER)]
    for row in rows:
        used = 0
        while (chosen := next((i for i, ids in enumerate(buffer) if used + len(ids) <= row_length), None)) is not None:
            ids = buffer.pop(chosen)
            row[used : used + len(ids)] = ids
            used += len(ids)
            buffer.append(next(documents))
    return rows


class Batches:
    """Iterates over the batches of steps 0, 1, ... without end; the order does not depend on the workers' speed."""

    def __init__(self, tokenizer_file: Path, seed: str, num_tokens: int, num_workers: int) -> None:
        command = [sys.executable, "-m", __name__, str(tokenizer_file), seed, str(num_tokens), str(num_workers)]
        self.workers = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE) for i in range(num_workers)]
        self.num_tokens = num_tokens
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        num_rows, row_length = rows_of(self.step, self.num_tokens)
        stream = self.workers[self.step % len(self.workers)].stdout
        assert stream is not None
        content = stream.read(num_rows * row_length * 2)
        if len(content) != num_rows * row_length * 2:
            raise RuntimeError("a worker died")
        self.step += 1
        return np.frombuffer(bytearray(content), dtype=np.uint16).reshape(num_rows, row_length)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self.workers:
            worker.kill()
            worker.wait()


def main() -> None:
    """A worker: writes the batches of every so many steps to its standard output until nobody reads them."""
    tokenizer_file, seed, num_tokens, stride, first = sys.argv[1:]
    tokenizer = Tokenizer.from_file(tokenizer_file)
    for step in count(int(first), int(stride)):
        sys.stdout.buffer.write(make_batch(tokenizer, seed, step, int(num_tokens)).tobytes())


if __name__ == "__main__":
    main()
