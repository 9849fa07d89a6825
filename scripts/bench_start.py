"""How long a server takes from `exec` to /readyz 200 and to the first streamed token, by weights and Triton cache.

    python -m scripts.bench_start --dummy MODEL_DIR MODEL_DIR --real MODEL_DIR [-- flags of penstock serve]

MODEL_DIR has a config.json and a tokenizer. For --real a checkpoint of that shape is first written to --work-dir: random bf16
numbers in several shards, which are then in the page cache. The first start of each model finds Triton's cache empty, the
others what the first one left. One JSON line per start, with the engine's own breakdown, goes to stdout, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

POLL_INTERVAL_S = 0.02
START_LIMIT_S = 120.0
NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS = 64, 4
NUM_SHARDS = 4
BLOCK_NUMBERS = 1 << 24
"""Random numbers that are written again and again."""
ONE_BF16 = 0x3F80
_READY_LINE = re.compile(r"Engine ready after ([\d.]+) s: (.*)")


@dataclass(frozen=True)
class Start:
    """One start of a server."""

    model: str
    weights: str
    """"dummy" or "real"."""
    triton_cache: str
    """"empty" or "warm"."""
    ready_s: float
    first_token_s: float
    """Both counted from exec."""
    phases_s: dict[str, float]
    """As the engine tells them."""


def write_checkpoint(source_dir: Path, target_dir: Path, num_shards: int = NUM_SHARDS) -> int:
    """Writes bf16 weights for the model of `source_dir` beside copies of its small files; returns their bytes."""
    target_dir.mkdir(parents=True, exist_ok=True)
    for path in source_dir.iterdir():
        if path.is_file() and not path.name.startswith("model"):
            shutil.copy(path, target_dir)
    shapes = _tensor_shapes(source_dir)
    names = list(shapes)
    per_shard = -(-len(names) // num_shards)
    shards = {
        f"model-{index + 1:05}-of-{num_shards:05}.safetensors": names[index * per_shard : (index + 1) * per_shard]
        for index in range(num_shards)
    }
    shards = {file_name: members for file_name, members in shards.items() if members}
    numbers = np.random.default_rng(0).standard_normal(BLOCK_NUMBERS, np.float32) * np.float32(0.02)
    block = (numbers.view(np.uint32) >> 16).astype(np.uint16)  # a bf16 is the upper half of a float32
    with ThreadPoolExecutor(num_shards) as pool:
        sizes = pool.map(
            lambda shard: _write_shard(target_dir / shard[0], {name: shapes[name] for name in shard[1]}, block), shards.items()
        )
        total = sum(sizes)
    weight_map = {name: file_name for file_name, members in shards.items() for name in members}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _tensor_shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor a checkpoint of the model has."""
    import torch

    from penstock.engine.model_config import ModelConfig
    from penstock.engine.models import build_model

    config = ModelConfig.from_dir(model_dir)
    model = build_model(config, device="meta", dtype=torch.bfloat16, max_model_len=16)
    return {name: target.shape for name, target in model.weight_targets().items()}


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], block: np.ndarray) -> int:
    header: dict[str, object] = {}
    position = 0
    for name, shape in shapes.items():
        num_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + num_bytes]}
        position += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(np.prod(shape))
            source = block if len(shape) > 1 else np.full(left, ONE_BF16, np.uint16)  # norms
            while left:
                part = source[: min(left, len(source))].view(np.uint8).data
                while len(part):
                    part = part[file.write(part) or 0 :]
                left -= min(left, len(source))
    return position


@contextlib.contextmanager
def _server(model_dir: Path, flags: Sequence[str], triton_dir: Path, log: Path) -> Iterator[tuple[int, float]]:
    """A running server's port and when it was started."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "penstock", "serve", str(model_dir), "--port", str(port), *flags]
    with log.open("w") as stderr:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stderr, stderr=stderr, env=os.environ | {"TRITON_CACHE_DIR": str(triton_dir)}
        )
        try:
            yield port, began_s
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(port: int, began_s: float) -> None:
    while time.perf_counter() - began_s < START_LIMIT_S:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(POLL_INTERVAL_S)
    raise TimeoutError(f"not ready after {START_LIMIT_S:g} s")


def _wait_for_token(port: int) -> None:
    """Returns when the first event of a streamed completion is there."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/v1/models")
        model = json.loads(connection.getresponse().read())["data"][0]["id"]
        body = {
            "model": model,
            "prompt": [index % 200 for index in range(NUM_PROMPT_TOKENS)],
            "max_tokens": NUM_OUTPUT_TOKENS,
            "stream": True,
            "ignore_eos": True,
        }
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        while line := response.readline():
            if line.startswith(b"data: {"):
                return
        raise RuntimeError("the stream ended without a token")


def measure(model_dir: Path, weights: str, flags: Sequence[str], triton_dir: Path, log: Path) -> Start:
    """Starts a server, asks it for a token and stops it."""
    triton_cache = "warm" if triton_dir.exists() else "empty"
    flags = [*flags, *(("--load-format", "dummy") if weights == "dummy" else ())]
    try:
        with _server(model_dir, flags, triton_dir, log) as (port, began_s):
            _wait_until_ready(port, began_s)
            ready_s = time.perf_counter() - began_s
            _wait_for_token(port)
            first_token_s = time.perf_counter() - began_s
    except Exception:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise
    found = _READY_LINE.search(log.read_text())
    phases = dict(part.rsplit(" ", 1) for part in found[2].split(", ")) if found else {}
    return Start(
        model=model_dir.name,
        weights=weights,
        triton_cache=triton_cache,
        ready_s=round(ready_s, 2),
        first_token_s=round(first_token_s, 2),
        phases_s={name: float(took_s) for name, took_s in phases.items()},
    )


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="times server starts", usage=__doc__)
    parser.add_argument("--dummy", type=Path, nargs="*", default=[], help="models to start with made-up weights")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="models to write a checkpoint of and start")
    parser.add_argument("--work-dir", type=Path, help="for checkpoints and Triton's cache (default: a temporary directory)")
    parser.add_argument("--repeat", type=int, default=2, help="starts of each; the first finds an empty Triton cache")
    parser.add_argument("--load-grid", action="store_true", help="run scripts.bench_load on each written checkpoint, too")
    parser.add_argument("flags", nargs="*", help="of penstock serve, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-start-", dir=arguments.work_dir) as directory:
        work_dir, starts = Path(directory), []
        plan = [(path, "dummy") for path in arguments.dummy] + [(path, "real") for path in arguments.real]
        for model_dir, weights in plan:
            triton_dir, source_dir = work_dir / f"triton-{model_dir.name}", model_dir
            if weights == "real":
                began_s = time.perf_counter()
                source_dir = work_dir / model_dir.name
                num_bytes = write_checkpoint(model_dir, source_dir)
                print(f"wrote {num_bytes / 1e9:.1f} GB in {time.perf_counter() - began_s:.1f} s", file=sys.stderr, flush=True)
                if arguments.load_grid:
                    subprocess.run([sys.executable, "-m", "scripts.bench_load", str(source_dir)], check=True)
            for _ in range(1 if triton_dir.exists() else arguments.repeat):
                starts.append(measure(source_dir, weights, arguments.flags, triton_dir, work_dir / "log"))
                print(json.dumps(asdict(starts[-1])), flush=True)
    print(_table(starts))


def _table(starts: Sequence[Start]) -> str:
    rows = [("model", "weights", "Triton cache", "ready, s", "first token, s")]
    rows += [(one.model, one.weights, one.triton_cache, f"{one.ready_s:.2f}", f"{one.first_token_s:.2f}") for one in starts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
