"""Plain-PyTorch twins of sampling: keyed noise, filters as thresholds, penalties, log-probabilities.

Nothing here depends on what else is in the batch: a row's token is a function of its logits, parameters, seed and position.
What takes several times the memory of its logits is done in rounds of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_32_BITS = 0xFFFFFFFF
_NUM_ROUNDS = 10
MAX_ROUND_ELEMENTS = 1 << 23
"""Logits of one round; its temporaries take about 40 bytes for each."""
NUM_LIKELIEST = 1024
"""Tokens that decide most filters, far cheaper to find than the order of a whole vocabulary."""


def philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).

    Four counter words and two key words, int64 tensors of values 0 .. 2**32 - 1 that broadcast; returns four such words. The
    order of words is that of Random123 and of Triton's `tl.philox`.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for _ in range(_NUM_ROUNDS):
        # A 64-bit product may wrap into the sign; its bits are right all the same.
        product_a, product_b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product_b >> 32) & _LOW_32_BITS) ^ c1 ^ k0
        c2 = ((product_a >> 32) & _LOW_32_BITS) ^ c3 ^ k1
        c1, c3 = product_b & _LOW_32_BITS, product_a & _LOW_32_BITS
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32_BITS, (k1 + _KEY_STEPS[1]) & _LOW_32_BITS
    return c0, c1, c2, c3


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise float32 [N, vocab_size], a function of (seed, output position, token id) and of nothing else.

    Philox4x32-10 with the seed as key (low word first) and the counter (token id // 4, position, 0, 0); a token takes word
    (token id % 4). seeds int64 [N], >= 0; positions int [N], 0 .. 2**32 - 1.
    """
    device = seeds.device
    quads = torch.arange((vocab_size + 3) // 4, device=device).unsqueeze(0)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=device)
    counters = (quads, positions.long().unsqueeze(1), zero, zero)
    keys = ((seeds & _LOW_32_BITS).unsqueeze(1), ((seeds >> 32) & _LOW_32_BITS).unsqueeze(1))
    words = torch.stack(philox(counters, keys), dim=-1).flatten(1)[:, :vocab_size]
    # The likeliest winner has the smallest exponential: log1p keeps full precision there, where log(u) near 1 has none.
    uniform = ((words.float() + 0.5) * 2.0**-32).clamp_max(1.0 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))


def _rounds(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices of rows with a bounded number of logits."""
    rows_per_round = max(1, MAX_ROUND_ELEMENTS // vocab_size)
    for start in range(0, num_rows, rows_per_round):
        yield slice(start, start + rows_per_round)


def _thresholds(tempered: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """On a CPU only rows that their likeliest tokens do not decide are sorted as a whole."""
    if tempered.device.type != "cpu" or tempered.shape[1] <= NUM_LIKELIEST:
        return _decide(tempered, _sorted(tempered), top_k, top_p, min_p)[0]
    likeliest = tempered.topk(NUM_LIKELIEST, dim=1).values
    thresholds, is_decided = _decide(tempered, likeliest, top_k, top_p, min_p)
    rest = (~is_decided).nonzero().flatten()
    if len(rest):
        tempered = tempered[rest]
        thresholds[rest] = _decide(tempered, _sorted(tempered), top_k[rest], top_p[rest], min_p[rest])[0]
    return thresholds


def _sorted(tempered: Tensor) -> Tensor:
    return tempered.sort(dim=1, descending=True).values


def _decide(tempered: Tensor, ordered: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds from the highest values in falling order, and bool [N]: whether so many were enough to tell."""
    vocab_size, num_ordered = tempered.shape[1], ordered.shape[1]
    highest = ordered[:, :1]
    thresholds = highest + min_p.unsqueeze(1).log()  # log(0) = -inf: min_p is off
    has_top_k = (top_k > 0) & (top_k < vocab_size)
    last = top_k.clamp(1, num_ordered).long().unsqueeze(1) - 1
    thresholds = torch.maximum(thresholds, torch.where(has_top_k.unsqueeze(1), ordered.gather(1, last), -torch.inf))
    total = torch.where(tempered >= thresholds, (tempered - highest).exp_(), 0.0).sum(1, keepdim=True)
    kept = ordered >= thresholds
    weights = torch.where(kept, (ordered - highest).exp_(), 0.0)
    mass_before = weights.cumsum(1) - weights
    needed = kept & (mass_before < top_p.unsqueeze(1) * total)
    needed[:, 0] = True
    num_needed = needed.sum(1, keepdim=True)
    has_top_p = top_p < 1.0
    nucleus = torch.maximum(thresholds, ordered.gather(1, num_needed - 1))
    thresholds = torch.where(has_top_p.unsqueeze(1), nucleus, thresholds).squeeze(1)
    is_open = (has_top_k & (top_k > num_ordered)) | (has_top_p & (num_needed.squeeze(1) == num_ordered))
    return thresholds, ~is_open


def logit_thresholds_by_slot(
    logits: Tensor, row_slots: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """See ops.logit_thresholds_by_slot."""
    vocab_size, own = logits.shape[1], row_slots.long()
    temperatures, top_k, top_p, min_p = temperatures[own], top_k[own], top_p[own], min_p[own]
    has_filters = ((top_k > 0) & (top_k < vocab_size)) | (top_p < 1.0) | (min_p > 0.0)
    has_filters &= (temperatures > 0) & torch.isfinite(logits.amax(dim=1))
    thresholds = torch.full_like(temperatures, -torch.inf)
    filtered = has_filters.nonzero().flatten()
    for round_ in _rounds(len(filtered), vocab_size):
        part = filtered[round_]
        own_logits = logits[part].float()
        tempered = own_logits / temperatures[part].unsqueeze(1)
        lowest = _thresholds(tempered, top_k[part], top_p[part], min_p[part])
        thresholds[part] = own_logits.masked_fill_(tempered < lowest.unsqueeze(1), torch.inf).amin(dim=1)
    return thresholds


def sample_tokens(
    logits: Tensor, row_slots: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor, thresholds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ops.sample_tokens."""
    own = row_slots.long()
    temperatures, seeds, positions = temperatures[own], seeds[own], positions[own]
    token_ids = logits.argmax(dim=1)
    random = (temperatures > 0).nonzero().flatten()
    for round_ in _rounds(len(random), logits.shape[1]):
        part = random[round_]
        own_logits = logits[part].float()
        noisy = gumbel_noise(seeds[part], positions[part], logits.shape[1])
        noisy += own_logits / temperatures[part].unsqueeze(1)
        if thresholds is not None:
            noisy.masked_fill_(own_logits < thresholds[part].unsqueeze(1), -torch.inf)
        token_ids[part] = noisy.argmax(dim=1)
    return token_ids, torch.isfinite(logits.amax(dim=1))


def apply_penalties(
    logits: Tensor,
    rows: Tensor,
    token_counts: Tensor,
    count_rows: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """See ops.apply_penalties."""
    for part in _rounds(len(rows), logits.shape[1]):
        counts = token_counts.index_select(0, count_rows[part])
        penalized = logits.index_select(0, rows[part])
        factors = repetition[part].unsqueeze(1)
        divided = torch.where(penalized > 0, penalized / factors, penalized * factors)
        penalized = torch.where(counts != 0, divided, penalized)
        num_output = counts >> 1
        penalized -= frequency[part].unsqueeze(1) * num_output
        penalized -= presence[part].unsqueeze(1) * (num_output > 0)
        logits.index_copy_(0, rows[part], penalized)


def count_tokens(token_counts: Tensor, count_rows: Tensor, token_ids: Tensor) -> None:
    """See ops.count_tokens."""
    token_counts[count_rows, token_ids] += 2


def add_to_logits(logits: Tensor, rows: Tensor, token_ids: Tensor, values: Tensor) -> None:
    """See ops.add_to_logits."""
    logits[rows, token_ids] += values


def top_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ops.top_logprobs."""
    logprobs = torch.log_softmax(logits.float(), dim=1)
    chosen = token_ids.unsqueeze(1)
    chosen_logprobs = logprobs.gather(1, chosen)
    ranks = (logits > logits.gather(1, chosen)).sum(1) + 1
    top = logprobs.topk(num_top, dim=1)
    ids = torch.cat((chosen, top.indices), dim=1)
    return ids.int(), torch.cat((chosen_logprobs, top.values), dim=1), ranks.int()
