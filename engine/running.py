"""The running requests as arrays by slot, so that a step moves all that decode with a few array operations.

A request is here from the moment it takes a slot until it gives it back. `epochs` tells a slot's bearers apart: what a step in
flight yields for another epoch than the slot's present one belongs to somebody who is gone.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .request import Request

NEVER = np.iinfo(np.int32).max
"""A number of tokens no request reaches."""
_CACHE_LINE_TOKENS = 16


class Running:
    """What changes with every step, and what must be looked at in every step, of the requests in slots 0 .. num_slots - 1."""

    def __init__(self, num_slots: int, max_model_len: int, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self.requests: list[Request | None] = [None] * num_slots
        self.epochs = np.zeros(num_slots, np.int64)
        """Raised whenever a slot is given back."""
        self.num_departures = 0
        """How often any slot was given back."""
        self.num_decode_departures = 0
        """How often one of a request that decoded was."""
        self.num_known = np.zeros(num_slots, np.int32)
        """Tokens whose ids the host knows."""
        self.num_tokens = np.zeros(num_slots, np.int32)
        """With pending ones. Of a request that decodes, all but the last are computed or launched."""
        self.capacity = np.zeros(num_slots, np.int32)
        """Tokens that the slot's KV blocks hold."""
        self.offer_at = np.zeros(num_slots, np.int32)
        """So many computed tokens are worth another offer to the prefix cache."""
        self.last_token_s = np.zeros(num_slots, np.float64)
        self.num_prompt_tokens = np.zeros(num_slots, np.int32)
        self.max_num_tokens = np.zeros(num_slots, np.int32)
        self.handles = np.zeros(num_slots, np.int64)
        self.is_decoding = np.zeros(num_slots, np.bool_)
        """Lacks one token, which the device itself sampled last; a sampled token is sure to be needed next."""
        self.heeds_eos = np.zeros(num_slots, np.bool_)
        self.has_stop_ids = np.zeros(num_slots, np.bool_)
        self.wants_logprobs = np.zeros(num_slots, np.bool_)
        self.plain_from = np.zeros(num_slots, np.int32)
        """From so many tokens on, sampling neither depends on the position nor reports anything."""
        self.is_eos = np.zeros(vocab_size, np.bool_)
        self.is_eos[[token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size]] = True
        self.num_stopping = np.zeros(vocab_size, np.int32)
        """Of each token id: how many running requests have it among their own stop ids."""
        self.token_ids = _untouched_memory(num_slots, max_model_len)
        """[slots, positions]: known ids from the last full block of the prompt onwards."""

    def enter(self, request: Request, tail_start: int, offer_at: int) -> None:
        """The request has its slot; `tail_start` is where the known ids begin that are copied into the slot's row."""
        slot, sampling = request.slot, request.sampling
        assert slot is not None, "a running request has a slot"
        num_known = len(request.token_ids)
        self.requests[slot] = request
        self.num_known[slot] = self.num_tokens[slot] = num_known
        self.token_ids[slot, tail_start:num_known] = request.token_ids[tail_start:]
        self.offer_at[slot] = offer_at
        self.num_prompt_tokens[slot] = request.num_prompt_tokens
        self.max_num_tokens[slot] = request.max_num_tokens
        self.handles[slot] = request.handle
        self.heeds_eos[slot] = not sampling.ignore_eos
        self.wants_logprobs[slot] = sampling.logprobs is not None
        is_plain = sampling.logprobs is None
        self.plain_from[slot] = request.num_prompt_tokens + sampling.min_tokens if is_plain else NEVER
        self.has_stop_ids[slot] = bool(sampling.stop_token_ids)
        if sampling.stop_token_ids:
            self.num_stopping[list(set(sampling.stop_token_ids))] += 1
        if request.last_token_s is not None:
            self.last_token_s[slot] = request.last_token_s

    def sample_first(self, request: Request) -> bool:
        """A launched step computes the last known token and samples the next; whether the request decodes from here on."""
        slot = request.slot
        assert slot is not None, "a running request has a slot"
        num_tokens = len(request.token_ids) + 1
        self.num_tokens[slot] = num_tokens
        decodes = num_tokens < request.max_num_tokens
        self.is_decoding[slot] = decodes
        return decodes

    def append(self, slot: int, token_ids: list[int]) -> None:
        """Ids the host has learnt."""
        num_known = int(self.num_known[slot])
        self.token_ids[slot, num_known : num_known + len(token_ids)] = token_ids
        self.num_known[slot] = num_known + len(token_ids)

    def leave(self, request: Request) -> None:
        """Writes what was counted here back to the request, whose slot is about to be given back."""
        slot = request.slot
        assert slot is not None, "a running request has a slot"
        num_known = int(self.num_known[slot])
        request.num_pending_tokens = int(self.num_tokens[slot]) - num_known
        num_stored = len(request.token_ids)
        if num_known > num_stored:
            request.token_ids.frombytes(self.token_ids[slot, num_stored:num_known].tobytes())
        if request.last_token_s is not None:
            request.last_token_s = float(self.last_token_s[slot])
        if request.sampling.stop_token_ids:
            self.num_stopping[list(set(request.sampling.stop_token_ids))] -= 1
        self.requests[slot] = None
        self.num_decode_departures += bool(self.is_decoding[slot])
        self.is_decoding[slot] = False
        self.epochs[slot] += 1
        self.num_departures += 1

    def num_known_of(self, request: Request) -> int:
        """Tokens of the request whose ids the host knows, wherever it stands."""
        return len(request.token_ids) if request.slot is None else int(self.num_known[request.slot])

    def tail(self, slot: int, start: int, end: int) -> bytes:
        """Known ids of positions [start, end), int32; from the last full block of the prompt onwards."""
        return self.token_ids[slot, start:end].tobytes()


def _untouched_memory(num_rows: int, num_columns: int) -> NDArray[np.int32]:
    """[num_rows, num_columns] of memory that costs nothing until it is written; rows do not share their place in the cache."""
    stride = (num_columns // _CACHE_LINE_TOKENS + 2) * _CACHE_LINE_TOKENS
    num_bytes = num_rows * stride * 4
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int32).reshape(num_rows, stride)[:, :num_columns]
