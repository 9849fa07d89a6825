"""Sends concurrent streaming completions to a server through the official openai client and prints what came back.

    python scripts/load_smoke.py --url http://127.0.0.1:8000 --concurrency 64 --requests 256

Fails if a request failed, came short, or left KV blocks owned afterwards. A smoke test, not a benchmark: one client process
is soon the bottleneck.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
import urllib.request
from dataclasses import dataclass

from openai import AsyncOpenAI


@dataclass(frozen=True)
class Answer:
    """What one request got."""

    num_tokens: int
    ttft_s: float
    duration_s: float
    finish_reason: str | None


async def ask(client: AsyncOpenAI, model: str, prompt: list[int], max_tokens: int) -> Answer:
    """One streaming completion of exactly `max_tokens` tokens."""
    start_s = time.perf_counter()
    ttft_s, finish_reason, num_tokens = 0.0, None, 0
    stream = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        ttft_s = ttft_s or time.perf_counter() - start_s
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
    return Answer(num_tokens, ttft_s, time.perf_counter() - start_s, finish_reason)


async def ask_all(arguments: argparse.Namespace) -> list[Answer | BaseException]:
    """All requests, `concurrency` at a time, in the order they were asked."""
    client = AsyncOpenAI(base_url=f"{arguments.url}/v1", api_key="none", max_retries=0, timeout=arguments.timeout)
    model = (await client.models.list()).data[0].id
    rng, places = random.Random(arguments.seed), asyncio.Semaphore(arguments.concurrency)

    async def one(num_prompt_tokens: int) -> Answer:
        prompt = [rng.randrange(256, arguments.vocab_size) for _ in range(num_prompt_tokens)]
        async with places:
            return await ask(client, model, prompt, arguments.max_tokens)

    lengths = [rng.randint(16, arguments.max_prompt_tokens) for _ in range(arguments.requests)]
    return await asyncio.gather(*(one(length) for length in lengths), return_exceptions=True)


def owned_blocks(url: str) -> float:
    """KV blocks that requests own at this moment, from /metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "kv_blocks{" in line and 'state="owned"' in line)


def main() -> int:
    """Runs the load and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-prompt-tokens", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=100_000, help="prompts are random ids from 256 up to this")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one request")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start_s = time.perf_counter()
    answers = asyncio.run(ask_all(arguments))
    wall_s = time.perf_counter() - start_s
    good = [answer for answer in answers if isinstance(answer, Answer)]
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    short = [answer for answer in good if answer.num_tokens != arguments.max_tokens or answer.finish_reason != "length"]
    left = owned_blocks(arguments.url)
    print(f"requests {len(answers)}, answered {len(good)}, failed {len(errors)}, short {len(short)}, KV blocks left {left:.0f}")
    if good:
        ttft_ms = sorted(1e3 * answer.ttft_s for answer in good)
        print(f"output tokens/s {sum(a.num_tokens for a in good) / wall_s:.1f} over {wall_s:.1f} s")
        print(f"TTFT ms: p50 {statistics.median(ttft_ms):.1f}, p95 {ttft_ms[int(0.95 * (len(ttft_ms) - 1))]:.1f}")
    for error in errors[:3]:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 1 if errors or short or left else 0


if __name__ == "__main__":
    sys.exit(main())
