"""Which running requests decode, as arrays that are kept from step to step and made anew only when somebody comes or goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .request import Request
from .running import Running


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRows:
    """The decodes of a step in the order in which requests are served. Arrays over them; none is ever changed."""

    slots: NDArray[np.int64]
    plan_slots: NDArray[np.int32]
    """The same for the plan."""
    epochs: NDArray[np.int64]
    handles: NDArray[np.int64]
    num_prompt_tokens: NDArray[np.int32]
    max_num_tokens: NDArray[np.int32]
    heeds_eos: NDArray[np.bool_]
    has_stop_ids: NDArray[np.bool_]
    wants_logprobs: NDArray[np.bool_]
    any_stop_ids: bool
    any_logprobs: bool
    num_departures: int
    """Of `running` when this was made: with the same count, all are still in their slots."""
    num_decode_departures: int

    def __len__(self) -> int:
        return len(self.slots)


def decode_rows(running: Running, slots: NDArray[np.int64]) -> DecodeRows:
    """What is to be known of the requests in `slots`."""
    plan_slots = slots.astype(np.int32)
    plan_slots.flags.writeable = False
    has_stop_ids, wants_logprobs = running.has_stop_ids[slots], running.wants_logprobs[slots]
    return DecodeRows(
        slots,
        plan_slots,
        running.epochs[slots],
        running.handles[slots],
        running.num_prompt_tokens[slots],
        running.max_num_tokens[slots],
        running.heeds_eos[slots],
        has_stop_ids,
        wants_logprobs,
        bool(has_stop_ids.any()),
        bool(wants_logprobs.any()),
        running.num_departures,
        running.num_decode_departures,
    )


class Decoding:
    """Keeps the DecodeRows of `running`."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._added: list[Request] = []
        self._last_order: tuple[int, int] | None = None
        self._rows = decode_rows(running, np.zeros(0, np.int64))
        self.steps_to_close = 0
        """So many steps until some row needs no more tokens."""
        self.steps_to_cross = 0
        """So many tokens more fit into the blocks that every row has."""

    def add(self, request: Request) -> None:
        """The request decodes from the next step on."""
        self._added.append(request)

    def rows(self) -> DecodeRows:
        """All requests that decode in the next step: they lack a token, and what they sample next will be needed."""
        running = self._running
        if self._added or self.steps_to_close <= 0 or self._rows.num_decode_departures != running.num_decode_departures:
            self._rows = self._make_rows()
        return self._rows

    def advance(self, num_steps: int) -> None:
        """All rows were planned for so many steps."""
        self._running.num_tokens[self._rows.slots] += num_steps
        self.steps_to_close -= num_steps
        self.steps_to_cross -= num_steps

    def advance_some(self, rows: DecodeRows) -> None:
        """Other rows than all of them were planned for a step."""
        self._running.num_tokens[rows.slots] += 1
        self.steps_to_close = self.steps_to_cross = 0  # as good as unknown

    def note_blocks(self) -> None:
        """Rows have got blocks."""
        slots, running = self._rows.slots, self._running
        self.steps_to_cross = int((running.capacity[slots] - running.num_tokens[slots]).min())

    def _make_rows(self) -> DecodeRows:
        running, slots = self._running, self._rows.slots
        if len(slots):
            slots = slots[running.is_decoding[slots] & (running.epochs[slots] == self._rows.epochs)]
            is_open = running.num_tokens[slots] < running.max_num_tokens[slots]
            running.is_decoding[slots[~is_open]] = False
            slots = slots[is_open]
        added = [request for request in self._added if request.slot is not None and running.is_decoding[request.slot]]
        self._added = []
        if added:
            slots = self._join(slots, added)
        rows = self._rows = decode_rows(running, slots)
        if len(rows):
            self.steps_to_close = int((rows.max_num_tokens - running.num_tokens[slots]).min())
            self.note_blocks()
        return rows

    def _join(self, slots: NDArray[np.int64], added: list[Request]) -> NDArray[np.int64]:
        """Mostly the newcomers are the newest and stand at the end."""
        added.sort(key=lambda request: request.order)
        new_slots = np.array([request.slot for request in added], np.int64)
        last = self._running.requests[slots[-1]] if len(slots) else None
        joined = np.concatenate((slots, new_slots))
        if last is None or last.order < added[0].order:
            return joined
        requests = [self._running.requests[slot] for slot in joined.tolist()]
        orders = [request.order for request in requests if request is not None]
        return joined[sorted(range(len(orders)), key=orders.__getitem__)]
