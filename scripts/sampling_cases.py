"""Cases of sampling for `scripts.bench_kernels`: see kernel_cases."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels import ops
from scripts.kernel_cases import Calls, Case, random_numbers

TOP_K, TOP_P = 50, 0.95


def sample_tokens(num_rows: int, vocab_size: int, how: str) -> Case:
    """`how`: "greedy", "random" at temperature 0.8, or "filtered" by top-k and top-p as well."""

    def make(device: torch.device) -> Calls:
        logits = random_numbers(num_rows, vocab_size, device=device) * 4
        slots = torch.arange(num_rows, dtype=torch.int32, device=device)
        temperatures = torch.full((num_rows,), 0.0 if how == "greedy" else 0.8, device=device)
        seeds, positions = (torch.arange(num_rows, device=device) for _ in range(2))
        top_k = torch.full((num_rows,), TOP_K, dtype=torch.int32, device=device)
        top_p = torch.full((num_rows,), TOP_P, device=device)
        min_p = torch.zeros(num_rows, device=device)

        def ours() -> Tensor:
            thresholds = None
            if how == "filtered":
                thresholds = ops.logit_thresholds_by_slot(logits, slots, temperatures, top_k, top_p, min_p)
            return ops.sample_tokens(logits, slots, temperatures, seeds, positions, thresholds)[0]

        def of_torch() -> Tensor:
            if how == "greedy":
                return logits.argmax(1)
            tempered = logits.float() / 0.8
            if how == "random":
                return (torch.softmax(tempered, 1) / torch.empty_like(tempered).exponential_()).argmax(1)
            ordered, token_ids = tempered.sort(1, descending=True)
            ordered[:, TOP_K:] = -torch.inf
            shares = torch.softmax(ordered, 1)
            kept = shares * (shares.cumsum(1) - shares < TOP_P)
            return token_ids.gather(1, (kept / torch.empty_like(kept).exponential_()).argmax(1, keepdim=True)).squeeze(1)

        return Calls(ours, of_torch)

    num_bytes = 2 * num_rows * vocab_size
    return Case(f"sample {num_rows}x{vocab_size} {how}", "read", num_bytes, num_bytes, make)
