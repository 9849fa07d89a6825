"""How fast a checkpoint goes from the page cache into a model on the device, by reading threads and size of the buffers.

    python -m scripts.bench_load MODEL_DIR [--device cuda]

The first row repeats the product's own setting, cold: its buffers and kernels are new to the process.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import torch

from penstock.engine.model_config import ModelConfig
from penstock.engine.models import build_model
from penstock.engine.weight_files import find_weight_files
from penstock.engine.weight_reader import BUFFER_BYTES, NUM_THREADS, WeightReader
from penstock.engine.weights import load_weights

THREADS = (4, 8, 12)
BUFFER_MIB = (16, 64, 128)


def main() -> None:
    """Loads again and again, prints a row each."""
    parser = argparse.ArgumentParser(description="times the loading of weights")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    config = ModelConfig.from_dir(arguments.model_dir)
    files = find_weight_files(arguments.model_dir)
    settings = [(NUM_THREADS, BUFFER_BYTES >> 20)] + [(threads, size) for threads in THREADS for size in BUFFER_MIB]
    with torch.inference_mode():
        dtype: torch.dtype = getattr(torch, config.dtype)
        model = build_model(config, device=arguments.device, dtype=dtype, max_model_len=16)
        print("threads  buffer, MiB  seconds   GB/s  read by, s")
        for threads, buffer_mib in settings:
            began_s = time.perf_counter()
            reader = WeightReader(files, config.needs_tensor, buffer_bytes=buffer_mib << 20, num_threads=threads)
            load_weights(model, arguments.model_dir, io.StringIO(), reader)
            took_s = time.perf_counter() - began_s
            rate = reader.total_bytes / took_s / 1e9
            print(f"{threads:>7}  {buffer_mib:>11}  {took_s:>7.3f}  {rate:>5.1f}  {reader.read_s:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
