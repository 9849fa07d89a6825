"""Asks a model the held-out questions of every skill, greedily, and counts exact answers.

`python -m scripts.demo_model.evaluate [MODEL_DIR]` serves the files with Penstock in this process, so it tests what is shipped.
An answer is exact when the whole text equals an accepted one and the model ended it with <|im_end|> by itself.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock import LLM, SamplingParams
from penstock.frontend.chat_template import ChatTemplate

from .generate import EVALUATIONS, Sample, evaluation
from .tokenizer import MODEL_DIR

SEED = "penstock-demo-evaluation"
MAX_NEW_TOKENS = 480


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote."""

    text: str
    stopped: bool  # by itself, with <|im_end|>


def answer_all(model_dir: Path, samples: list[Sample]) -> list[Answer]:
    """Greedy answers to all samples, in their order, batched by Penstock itself."""
    template, llm = ChatTemplate.from_dir(model_dir), LLM(str(model_dir))
    if template is None:
        raise SystemExit(f"{model_dir} has no chat template")
    tokenizer = llm.get_tokenizer()
    texts = [template.render(list(sample.messages), tools=list(sample.tools) or None) for sample in samples]
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS))
    return [Answer(output.outputs[0].text, output.outputs[0].finish_reason == "stop") for output in outputs]


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
    args = parser.parse_args()
    started_s = time.monotonic()
    samples = [sample for name in args.skills for sample in evaluation(name, args.samples, SEED)]
    skills = score(samples, answer_all(args.model, samples))
    print(table(skills))
    worst = min(row["exact"] / row["samples"] for row in skills.values())
    print(f"lowest: {worst:.1%}; {time.monotonic() - started_s:.0f} s", flush=True)
    if args.json:
        args.json.write_text(json.dumps(skills, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
