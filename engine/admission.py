"""The door: a Submit becomes a Request or is refused, with the reason and the field to blame.

The frontend has checked most of it before. The engine checks again, for there may be other doors, and a token id out of range
or a NaN must never reach the device.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ..ipc.messages import RejectReason, Sampling, Submit
from .errors import Refused
from .kv_blocks import KVBlocks
from .request import Request

MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS_BYTES = 32 << 20
"""A request's prompt logprobs travel in one message."""
_SMALLEST_FLOAT32, _LARGEST_FLOAT32 = 2.0**-126, 2.0**127
"""The device computes in float32: beyond, a temperature or penalty is infinite or zero there."""
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request is checked against."""

    vocab_size: int
    """Width of the logits."""
    max_model_len: int
    """Prompt and output tokens of one request."""
    max_num_seqs: int
    """Requests that run at once."""
    max_num_batched_tokens: int
    """Tokens of one step."""
    eos_token_ids: frozenset[int]


def admit(
    key: Hashable, submit: Submit, limits: Limits, blocks: KVBlocks, *, handle: int = 0, arrival: int, arrival_s: float
) -> Request:
    """The request of a Submit that can run; raises Refused for one that cannot."""
    token_ids = _read_token_ids(submit, limits)
    num_prompt_tokens = len(token_ids) - submit.num_output_tokens
    _check_sampling(submit.sampling, limits)
    _check_prompt_logprobs(submit.sampling, num_prompt_tokens)
    _require(-_INT32_MAX <= submit.priority <= _INT32_MAX, "priority", "must be a 32-bit integer")
    max_num_tokens = _max_num_tokens(submit.sampling.max_tokens, num_prompt_tokens, len(token_ids), limits)
    num_stored = num_prompt_tokens if submit.sampling.max_tokens == 0 else max_num_tokens - 1
    num_blocks = blocks.num_blocks_for(num_stored)
    if num_blocks > blocks.pool.num_blocks:
        raise Refused(
            RejectReason.TOO_LONG,
            f"{num_stored} tokens of KV need {num_blocks} blocks of {blocks.block_size} tokens; "
            f"the KV cache has {blocks.pool.num_blocks}",
            "max_tokens" if blocks.num_blocks_for(num_prompt_tokens) <= blocks.pool.num_blocks else "prompt",
        )
    return Request(
        key=key,
        handle=handle,
        arrival=arrival,
        arrival_s=arrival_s,
        priority=submit.priority,
        sampling=submit.sampling,
        cache_salt=submit.cache_salt,
        token_ids=token_ids,
        num_prompt_tokens=num_prompt_tokens,
        max_num_tokens=max_num_tokens,
    )


def _read_token_ids(submit: Submit, limits: Limits) -> array[int]:
    token_ids = array("i")
    _require(len(submit.token_ids) % token_ids.itemsize == 0, "prompt", "the token ids are no array of int32")
    token_ids.frombytes(submit.token_ids)
    _require(len(token_ids) > 0, "prompt", "is empty: at least one token is needed")
    numbers = np.frombuffer(submit.token_ids, np.int32)
    low, high = int(numbers.min()), int(numbers.max())
    _require(
        low >= 0 and high < limits.vocab_size,
        "prompt",
        f"token id {low if low < 0 else high} is out of range: the model has ids 0 to {limits.vocab_size - 1}",
    )
    _require(0 <= submit.num_output_tokens < len(token_ids), "prompt", "the output so far leaves no prompt")
    return token_ids


def _max_num_tokens(max_tokens: int, num_prompt_tokens: int, num_tokens: int, limits: Limits) -> int:
    """Prompt and output tokens the request may reach."""
    num_needed = num_prompt_tokens + min(max_tokens, 1)
    if num_needed > limits.max_model_len or num_tokens > limits.max_model_len:
        raise Refused(
            RejectReason.TOO_LONG,
            f"the context holds {limits.max_model_len} tokens; the prompt has {num_prompt_tokens}"
            + (" and one must be left for the output" if num_needed > num_prompt_tokens else ""),
            "prompt",
        )
    return min(num_prompt_tokens + max_tokens, limits.max_model_len)


def _check_prompt_logprobs(sampling: Sampling, num_prompt_tokens: int) -> None:
    if sampling.prompt_logprobs is not None:
        num_bytes = 8 * (1 + sampling.prompt_logprobs) * num_prompt_tokens
        _require(
            num_bytes <= MAX_PROMPT_LOGPROBS_BYTES,
            "prompt_logprobs",
            f"{1 + sampling.prompt_logprobs} logprobs for each of {num_prompt_tokens} prompt tokens are too many; "
            f"at most {MAX_PROMPT_LOGPROBS_BYTES // 8} in all",
        )


def _check_sampling(sampling: Sampling, limits: Limits) -> None:
    if not _are_numbers_in_range(sampling):
        _refuse_number(sampling)
    for token_id in (*sampling.stop_token_ids, *sampling.logit_bias):
        _require(
            0 <= token_id < limits.vocab_size,
            "logit_bias" if token_id in sampling.logit_bias else "stop_token_ids",
            f"token id {token_id} is out of range: the model has ids 0 to {limits.vocab_size - 1}",
        )
    for bias in sampling.logit_bias.values():
        _require(math.isfinite(bias) and -100 <= bias <= 100, "logit_bias", f"{bias} is not between -100 and 100")


def _are_numbers_in_range(sampling: Sampling) -> bool:
    """What `_refuse_number` finds nothing wrong with, in a tenth of its time; nothing compares with a NaN."""
    return (
        0 <= sampling.seed <= _INT64_MAX
        and 0 <= sampling.min_tokens <= sampling.max_tokens <= _INT32_MAX
        and 0 <= sampling.temperature <= _LARGEST_FLOAT32
        and 0 < sampling.top_p <= 1
        and 0 <= sampling.top_k <= _INT32_MAX
        and 0 <= sampling.min_p <= 1
        and -2 <= sampling.presence_penalty <= 2
        and -2 <= sampling.frequency_penalty <= 2
        and _SMALLEST_FLOAT32 <= sampling.repetition_penalty <= _LARGEST_FLOAT32
        and 0 <= (sampling.logprobs or 0) <= MAX_LOGPROBS
        and 0 <= (sampling.prompt_logprobs or 0) <= MAX_LOGPROBS
    )


def _refuse_number(sampling: Sampling) -> None:
    """Says which one is out of range."""
    _require_range(sampling, "seed", 0, _INT64_MAX)
    _require_range(sampling, "max_tokens", 0, _INT32_MAX)
    _require_range(sampling, "min_tokens", 0, sampling.max_tokens)
    _require_range(sampling, "temperature", 0, _LARGEST_FLOAT32)
    _require(sampling.top_p > 0, "top_p", "must be above 0")
    _require_range(sampling, "top_p", 0, 1)
    _require_range(sampling, "top_k", 0, _INT32_MAX)
    _require_range(sampling, "min_p", 0, 1)
    _require_range(sampling, "presence_penalty", -2, 2)
    _require_range(sampling, "frequency_penalty", -2, 2)
    _require_range(sampling, "repetition_penalty", _SMALLEST_FLOAT32, _LARGEST_FLOAT32)
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(sampling, name) is not None:
            _require_range(sampling, name, 0, MAX_LOGPROBS)


def _require_range(sampling: Sampling, name: str, low: float, high: float) -> None:
    value = getattr(sampling, name)
    _require(math.isfinite(value) and low <= value <= high, name, f"{value} is not a number from {low:g} to {high:g}")


def _require(condition: bool, param: str, message: str) -> None:
    if not condition:
        raise Refused(RejectReason.INVALID, f"{param}: {message}", param)
