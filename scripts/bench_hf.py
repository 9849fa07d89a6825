"""The naive baseline: transformers' `generate`, sdpa attention, made-up bf16 weights; one request at a time, and one batch.

    python -m scripts.bench_hf MODEL_DIR --lengths PATH/lengths.py

Every engine gets the same lengths (sharegpt_like of that file). Static batching ends when its longest request does, and only
what the others asked for counts. A part that takes longer than --seconds is cut there, and counts what it had by then. One
JSON line per part.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SEED = 0
NUM_WARM_UP_TOKENS = 8


def load_lengths(path: Path) -> ModuleType:
    """The module with `sharegpt_like` and `prompt_ids`."""
    spec = importlib.util.spec_from_file_location("lengths", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(model_dir: Path, device: str) -> Any:
    """The model with random weights."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(model_dir)
    torch.manual_seed(SEED)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


def generate(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int, limit_s: float) -> tuple[int, float]:
    """Greedy, padded on the left; (steps done, seconds)."""
    device, longest = model.device, max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    began_s = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            max_time=limit_s,
            pad_token_id=0,
        )
    steps = output.shape[1] - longest
    output.cpu()  # the clock stops when the tokens are here
    return steps, time.perf_counter() - began_s


def measure(model: Any, name: str, batches: Sequence[Sequence[tuple[list[int], int]]], limit_s: float) -> dict[str, object]:
    """Runs batches of (prompt, output tokens) one after the other."""
    num_out, took_s, num_done = 0, 0.0, 0
    for batch in batches:
        if took_s >= limit_s:
            break
        prompts, wanted = [prompt for prompt, _ in batch], [num_tokens for _, num_tokens in batch]
        steps, batch_s = generate(model, prompts, max(wanted), limit_s - took_s)
        num_out += sum(min(steps, num_tokens) for num_tokens in wanted)
        took_s += batch_s
        num_done += len(batch)
    return {
        "part": name,
        "requests": num_done,
        "out_tokens": num_out,
        "seconds": round(took_s, 2),
        "out_tok_s": round(num_out / took_s, 1),
    }


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="transformers' generate")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--lengths", type=Path, required=True, help="the file with the lengths")
    parser.add_argument("--batch", type=int, default=32, help="requests of the static batch")
    parser.add_argument("--seconds", type=float, default=20.0, help="most for each of the two parts")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    lengths = load_lengths(arguments.lengths)
    model = make_model(arguments.model_dir, arguments.device)
    vocab_size = model.config.vocab_size
    requests = [
        (lengths.prompt_ids(index, num_in, vocab_size), num_out)
        for index, (num_in, num_out) in enumerate(lengths.sharegpt_like(arguments.batch))
    ]
    generate(model, [requests[0][0]], NUM_WARM_UP_TOKENS, 60.0)
    parts = {"one at a time": [[request] for request in requests], f"static batch of {arguments.batch}": [requests]}
    versions = {"model": arguments.model_dir.name, "torch": torch.__version__, "device": str(model.device)}
    for name, batches in parts.items():
        print(json.dumps(versions | measure(model, name, batches, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
