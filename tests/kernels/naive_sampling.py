"""Filters and penalties as their definitions read, on lists of Python's floats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def naive_kept(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> tuple[set[int], float]:
    """Token ids that survive min_p, then top_k, then top_p (ties with the last one kept), and how near top_p's border was."""
    tempered = [logit / temperature for logit in logits]
    highest = max(tempered)
    kept = {i for i, logit in enumerate(tempered) if math.exp(logit - highest) >= min_p}
    if top_k:
        border = sorted((tempered[i] for i in kept), reverse=True)[:top_k][-1]
        kept = {i for i in kept if tempered[i] >= border}
    if top_p == 1.0:
        return kept, math.inf
    total = sum(math.exp(tempered[i] - highest) for i in kept)
    mass, margin = 0.0, math.inf
    for logit in sorted((tempered[i] for i in kept), reverse=True):
        mass += math.exp(logit - highest) / total
        margin = min(margin, abs(mass - top_p))
        if mass >= top_p:
            return {i for i in kept if tempered[i] >= logit}, margin
    return kept, margin


def naive_penalized(
    logits: Sequence[float],
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    repetition: float,
    frequency: float,
    presence: float,
) -> list[float]:
    """Logits after the repetition penalty on prompt and output, then frequency and presence penalties on the output."""
    penalized = []
    for token_id, logit in enumerate(logits):
        num_output = output.count(token_id)
        if num_output or token_id in prompt:
            logit = logit / repetition if logit > 0 else logit * repetition
        penalized.append(logit - frequency * num_output - (presence if num_output else 0.0))
    return penalized
