"""How much of the KV cache that requests own holds nothing, read off the block tables while ShareGPT-like requests run."""

from __future__ import annotations

import math
import random

from penstock.engine.toy_config import ToyConfig
from tests.engine.toy_engine import make_core, make_submit

BLOCK_SIZE = 16
MAX_WASTE = 0.04


def sharegpt_like(count: int) -> list[tuple[int, int]]:
    """(prompt, output) lengths: log-normal like ShareGPT's, mean about 220 in and 200 out, within 4 .. 1024."""
    rng = random.Random("sharegpt-like-0")

    def draw(mu: float, sigma: float) -> int:
        return max(4, min(1024, round(math.exp(rng.gauss(mu, sigma)))))

    return [(draw(4.87, 1.17), draw(4.91, 0.97)) for _ in range(count)]


def test_less_than_four_percent_of_the_owned_kv_cache_is_empty() -> None:
    config = ToyConfig(vocab_size=1000)
    core = make_core(
        config,
        num_blocks=4096,
        block_size=BLOCK_SIZE,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        max_model_len=2048,
    )
    rng = random.Random(0)
    for key, (num_prompt, num_output) in enumerate(sharegpt_like(250)):
        prompt = [rng.randrange(1000) for _ in range(num_prompt)]
        core.submit(key, make_submit(prompt, num_output, ignore_eos=True))
    owned = empty = 0
    while core.has_work:
        core.step()
        for request in core.scheduler._running:
            assert request.blocks is not None
            num_slots = BLOCK_SIZE * len(request.blocks.owned_block_ids())
            owned += num_slots
            empty += num_slots - request.num_computed_tokens
    print(f"{empty / owned:.2%} of the owned KV cache is empty")
    assert 0 < empty / owned < MAX_WASTE
