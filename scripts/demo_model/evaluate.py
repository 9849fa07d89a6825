"""Asks a model the held-out questions of every skill, greedily, and counts exact answers.

`python -m scripts.demo_model.evaluate [MODEL_DIR]` loads the files with transformers, so it tests what is shipped.
An answer is exact when the whole text equals an accepted one and the model ended it with <|im_end|> by itself.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .generate import EVALUATIONS, Sample, evaluation
from .tokenizer import IM_END, MODEL_DIR

SEED = "penstock-demo-evaluation"
MAX_NEW_TOKENS = 480
BATCH_TOKENS = {"cuda": 600_000, "cpu": 16_000}  # prompt tokens with padding at once


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote."""

    text: str
    stopped: bool  # by itself, with <|im_end|>


class Asker:
    """A model with its tokenizer, answering prompts in batches."""

    def __init__(self, model_dir: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
        self.model = model.to(device).eval()

    def prompt(self, sample: Sample) -> list[int]:
        """Token ids of a sample's prompt."""
        text = self.tokenizer.apply_chat_template(
            list(sample.messages), tools=list(sample.tools) or None, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]]) -> list[Answer]:
        """Greedy answers to a batch of prompts."""
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, temperature=None, top_p=None)
        end = self.tokenizer.convert_tokens_to_ids(IM_END)
        answers = []
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            stopped = end in row
            ids = row[: row.index(end)] if stopped else row
            answers.append(Answer(self.tokenizer.decode(ids, skip_special_tokens=True), stopped))
        return answers


def batched(prompts: list[list[int]], most_tokens: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length."""
    batches: list[list[int]] = [[]]
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if batches[-1] and (len(batches[-1]) + 1) * len(prompts[index]) > most_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def answer_all(asker: Asker, samples: list[Sample]) -> list[Answer]:
    """The answers to all samples, in their order."""
    prompts = [asker.prompt(sample) for sample in samples]
    answers: dict[int, Answer] = {}
    for batch in batched(prompts, BATCH_TOKENS[asker.device]):
        answers.update(zip(batch, asker.answer([prompts[i] for i in batch]), strict=True))
    return [answers[i] for i in range(len(samples))]


def score(samples: list[Sample], answers: list[Answer]) -> dict[str, Any]:
    """Per skill: how many samples, which share is exact and which stopped, and some wrong answers."""
    skills: dict[str, Any] = {}
    for sample, answer in zip(samples, answers, strict=True):
        row = skills.setdefault(sample.skill, {"samples": 0, "exact": 0, "stopped": 0, "wrong": []})
        is_exact = answer.stopped and answer.text in sample.accepted
        row["samples"] += 1
        row["exact"] += is_exact
        row["stopped"] += answer.stopped
        if not is_exact and len(row["wrong"]) < 8:
            asked = str(sample.messages[-1]["content"])[-400:]
            row["wrong"].append({"asked": asked, "expected": sample.accepted[0], "answered": answer.text[:400]})
    return skills


def table(skills: dict[str, Any]) -> str:
    """The scores as a Markdown table."""
    lines = ["| skill | held-out questions | exact | stops by itself |", "| --- | ---: | ---: | ---: |"]
    for name, row in skills.items():
        count = row["samples"]
        lines.append(f"| {name} | {count} | {row['exact'] / count:.1%} | {row['stopped'] / count:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluates, prints a table and writes the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--samples", type=int, default=250, help="held-out questions per skill")
    parser.add_argument("--json", type=Path, help="where to write scores and wrong answers")
    parser.add_argument("--skills", nargs="*", default=list(EVALUATIONS), choices=list(EVALUATIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    started_s = time.monotonic()
    samples = [sample for name in args.skills for sample in evaluation(name, args.samples, SEED)]
    skills = score(samples, answer_all(Asker(args.model, args.device), samples))
    print(table(skills))
    worst = min(row["exact"] / row["samples"] for row in skills.values())
    print(f"lowest: {worst:.1%}; {time.monotonic() - started_s:.0f} s on {args.device}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(skills, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
