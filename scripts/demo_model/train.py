"""Trains the demo model from scratch for a given time and writes it in Hugging Face's format.

`python -m scripts.demo_model.train --minutes 5 --out DIR` is the whole training: data are generated meanwhile.
The schedule follows the clock, so that it always ends and always saves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from .data import LONG_EVERY, Batches
from .model import Llama, Shape
from .muon import Muon
from .tokenizer import END_OF_TEXT, IM_END, IM_START, MODEL_DIR, token_id

SEED = "penstock-demo-1"
MATRIX_RATE, OTHER_RATE = 0.02, 0.003  # peak learning rates of Muon and of AdamW
WARMUP_STEPS = 60
DECAY_SHARE = 0.6  # the last share of the time, in which the learning rate falls to zero
HEADER_TOKENS = 3  # <|im_start|>, the role, the line break
REPORT_EVERY = 100  # steps


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids that tell answers from other text."""

    start: int
    end: int
    assistant: int
    document_end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Tokens:
        """Looked up in the tokenizer."""
        return cls(*(token_id(tokenizer, token) for token in (IM_START, IM_END, "assistant", END_OF_TEXT)))


def answer_mask(ids: Tensor, tokens: Tokens) -> Tensor:
    """Where ids (rows, length) belong to an answer of the assistant, its <|im_end|> included."""
    index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    is_start = ids == tokens.start
    start = torch.where(is_start, index, 0).cummax(dim=1).values  # where the message of each token begins
    role = ids.gather(1, (start + 1).clamp(max=ids.shape[1] - 1))
    is_end = (ids == tokens.end).long()
    ends_before = is_end.cumsum(dim=1) - is_end
    is_open = ends_before == ends_before.gather(1, start)
    return (role == tokens.assistant) & (index - start >= HEADER_TOKENS) & is_open & (ids != tokens.document_end)


def inputs_and_targets(batch: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """What the model reads, and what it has to say next: -100 where nobody asks."""
    ids = batch.long()
    targets = torch.where(answer_mask(ids, tokens), ids, -100)
    return ids, torch.cat((targets[:, 1:], torch.full_like(targets[:, :1], -100)), dim=1)


def rate_factor(step: int, progress: float) -> float:
    """The share of the peak learning rate at a step and a share of the time."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, min(1.0, (1.0 - progress) / DECAY_SHARE))


def train(model: Llama, batches: Batches, tokens: Tokens, minutes: float, device: torch.device) -> None:
    """Trains until the time is over."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda")
    loss_of = torch.compile(model.loss, dynamic=False) if device.type == "cuda" else model.loss
    clock = Clock(minutes * 60)
    for step, batch in enumerate(batches):
        if clock.progress() >= 1.0:
            break
        ids, targets = inputs_and_targets(torch.from_numpy(batch).to(device), tokens)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(ids, targets)
        torch.autograd.backward(loss)
        factor = rate_factor(step, clock.progress())
        muon.step(MATRIX_RATE * factor)
        adam.param_groups[0]["lr"] = OTHER_RATE * factor
        adam.step()
        model.zero_grad(set_to_none=True)
        if step == LONG_EVERY:
            clock.start()  # both shapes are compiled
        if step % REPORT_EVERY == 0:
            clock.report(step, loss.item(), ids.numel())


class Clock:
    """Time of training. It stands still until `start`, so that compiling does not count."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started_s: float | None = None
        self.created_s = time.monotonic()

    def start(self) -> None:
        """Lets the time run."""
        self.started_s = time.monotonic()

    def progress(self) -> float:
        """The share of the time that is over."""
        return 0.0 if self.started_s is None else (time.monotonic() - self.started_s) / self.seconds

    def report(self, step: int, loss: float, num_tokens: int) -> None:
        """Prints a line; `num_tokens` is the size of a batch."""
        now = time.monotonic()
        speed = f"{step * num_tokens / (now - self.created_s) / 1e6:.2f} M tokens/s since the start"
        print(f"step {step:5d}  {self.progress():6.1%}  loss {loss:.4f}  {now - self.created_s:5.0f} s  {speed}", flush=True)


def save(model: Llama, shape: Shape, tokens: Tokens, out: Path) -> None:
    """Writes weights and configuration; the tokenizer is copied from the package."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "bos_token_id": tokens.document_end,
        "eos_token_id": [tokens.end, tokens.document_end],
        "pad_token_id": tokens.document_end,
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
    }
    documents = {"config.json": shape.hf_config(tokens.document_end, tokens.end), "generation_config.json": generation}
    for name, document in documents.items():
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if out.resolve() != MODEL_DIR.resolve():
            shutil.copyfile(MODEL_DIR / name, out / name)


@torch.no_grad()
def check_export(shape: Shape, batches: Batches, out: Path) -> None:
    """Holds the logits of the files, as transformers computes them, against our own network's."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours = Llama(shape)
    ours.load_state_dict(load_file(out / "model.safetensors"))
    ids = torch.from_numpy(next(batches))[:2].long()
    expected = reference(input_ids=ids).logits
    error = ((ours(ids) - expected).norm() / expected.norm()).item()
    print(f"logits differ from transformers' by {error:.1e}", flush=True)
    assert error < 1e-4


def main() -> None:
    """Trains, saves, checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="time of training, without compiling and saving")
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--batch-tokens", type=int, default=262_144)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--layers", type=int, default=Shape().num_layers, help="fewer for a quick trial")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokens = Tokens.of(tokenizer)
    shape = Shape(vocab_size=tokenizer.get_vocab_size(), num_layers=args.layers)
    model = Llama(shape).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    batches = Batches(MODEL_DIR / "tokenizer.json", SEED, args.batch_tokens, args.workers)
    try:
        train(model, batches, tokens, args.minutes, device)
        save(model, shape, tokens, args.out)
        check_export(shape, batches, args.out)
    finally:
        batches.close()


if __name__ == "__main__":
    main()
