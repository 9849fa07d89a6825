"""How much of the KV cache that requests own holds nothing, measured from the block tables under a chat-like load."""

from __future__ import annotations

import math
import random

from penstock.engine.plan import StepResult
from tests.engine.plan_reader import PlanReader, sampled_everywhere
from tests.engine.toy_engine import make_scheduler, make_submit


def chat_lengths(num_requests: int) -> list[tuple[int, int]]:
    """(prompt, output) tokens, log-normal like ShareGPT's: about 220 in and 200 out on average, each within 4 .. 1024."""
    dice = random.Random("sharegpt-like-0")

    def draw(mu: float, sigma: float) -> int:
        return max(4, min(1024, round(math.exp(dice.gauss(mu, sigma)))))

    return [(draw(4.87, 1.17), draw(4.91, 0.97)) for _ in range(num_requests)]


def test_less_than_four_percent_of_owned_kv_is_empty() -> None:
    scheduler = make_scheduler(
        num_blocks=4000, block_size=16, max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=2048, caches_prefixes=False
    )
    for key, (num_prompt_tokens, num_output_tokens) in enumerate(chat_lengths(1000)):
        scheduler.submit(key, make_submit([1] * num_prompt_tokens, num_output_tokens))
    device = PlanReader()
    num_owned = num_stored = 0
    while (plan := scheduler.plan()) is not None:
        device.read(plan)
        num_owned += scheduler.blocks.pool.num_owned * 16
        num_stored += sum(device.num_computed[request.slot] for request in scheduler._book.running if request.slot is not None)
        scheduler.update(plan, StepResult(token_ids=sampled_everywhere(plan, 7)))
    waste = 1 - num_stored / num_owned
    print(f"KV waste: {waste:.2%}")
    assert 0 < waste < 0.04
