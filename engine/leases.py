"""The frontends an engine works for. A lease, not a connection, owns requests.

A frontend has a lease from its Hello on, for as long as it is heard every LEASE_TIMEOUT_S. When it falls silent its requests
are aborted and the lease ends once they are; a process that was only paused may come back to it with its next message, for it
is remembered for a while. Goodbye ends a lease for good.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..ipc.messages import LEASE_TIMEOUT_S
from .outbox import Outbox
from .outputs import PlainTokens, RequestOutput, StepOutputs
from .token_runs import TokenRuns, one_length_runs

MAX_TOMBSTONES = 4096
"""Aborts remembered per frontend for requests that have not arrived."""
MAX_DORMANT = 64
"""Frontends remembered after they fell silent."""
_REQUEST_BITS = 32
_REQUEST_MASK = (1 << _REQUEST_BITS) - 1


@dataclass(slots=True, eq=False)
class Lease:
    """One frontend process. `identity` has 8 random bytes of its boot, so a successor is another lease."""

    identity: bytes
    number: int
    """No other lease of this engine has the same."""
    outbox: Outbox
    last_heard_s: float
    open_requests: set[int] = field(default_factory=set)
    """Ids that have been submitted and whose terminal event is not in the outbox yet."""
    tombstones: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Ids that were aborted without being open: their Submit, should it still come, is refused."""
    is_ending: bool = False
    """Ends as soon as no request is open."""
    has_left: bool = False
    """Said Goodbye: does not come back."""

    def handle(self, request_id: int) -> int:
        """One int64 for the lease and one of its requests."""
        return self.number << _REQUEST_BITS | request_id

    def remember_abort(self, request_id: int) -> None:
        """Keeps the latest MAX_TOMBSTONES."""
        self.tombstones[request_id] = None
        if len(self.tombstones) > MAX_TOMBSTONES:
            self.tombstones.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """A lease's part of a step's plain tokens."""

    number: int
    request_ids: NDArray[np.int32]
    rows: NDArray[np.int64] | None
    """None: all."""


class Leases:
    """All leases by identity."""

    def __init__(self, engine_boot_id: bytes) -> None:
        self._engine_boot_id = engine_boot_id
        self._live: dict[bytes, Lease] = {}
        self._by_number: dict[int, Lease] = {}
        self._numbers = itertools.count()
        self._handles: NDArray[np.int64] | None = None
        self._shares: list[_Share] = []
        self._dormant: OrderedDict[bytes, Lease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Lease]:
        """Live leases; the table may change meanwhile."""
        return iter(list(self._live.values()))

    def greet(self, identity: bytes, now_s: float) -> None:
        """Gives a lease to who says Hello without having one."""
        if self.hear(identity, now_s) is None and identity not in self._live:
            lease = Lease(identity, next(self._numbers), Outbox(self._engine_boot_id), now_s)
            self._live[identity] = self._by_number[lease.number] = lease

    def hear(self, identity: bytes, now_s: float) -> Lease | None:
        """Notes a sign of life; None for who never said Hello, or has said Goodbye."""
        if identity in self._dormant:
            returned = self._live[identity] = self._dormant.pop(identity)
            self._by_number[returned.number] = returned
        lease = self._live.get(identity)
        if lease is None or lease.has_left:
            return None
        lease.last_heard_s = now_s
        lease.is_ending = False
        return lease

    def get(self, identity: bytes) -> Lease | None:
        """A live lease."""
        return self._live.get(identity)

    def deliver(self, outputs: StepOutputs) -> None:
        """Puts what a step yielded, with the handles of `Lease.handle`, into the outboxes of those whose requests they are."""
        if not outputs:
            return
        special: dict[int, list[tuple[int, RequestOutput]]] = {}
        for output in outputs.special:
            number, request_id = output.handle >> _REQUEST_BITS, output.handle & _REQUEST_MASK
            special.setdefault(number, []).append((request_id, output))
            if output.finish_reason is not None:
                self._by_number[number].open_requests.discard(request_id)
        plain = {} if outputs.plain is None else self._divide(outputs.plain)
        for number in special.keys() | plain.keys():
            self._by_number[number].outbox.add(special.get(number, ()), plain.get(number))

    def _divide(self, plain: PlainTokens) -> dict[int, TokenRuns]:
        """By lease. Most steps' tokens are for the requests of the step before."""
        if plain.handles is not self._handles:
            self._handles, self._shares = plain.handles, _shares(plain.handles)
        return {
            share.number: one_length_runs(share.request_ids, plain.positions, plain.token_ids)
            if share.rows is None
            else one_length_runs(share.request_ids, plain.positions[share.rows], plain.token_ids[:, share.rows])
            for share in self._shares
        }

    def silent(self, now_s: float) -> list[Lease]:
        """Leases that have not been heard for too long and are not ending yet."""
        return [lease for lease in self._live.values() if now_s - lease.last_heard_s > LEASE_TIMEOUT_S and not lease.is_ending]

    def end(self, lease: Lease) -> None:
        """Takes a lease without open requests off the table; unless its bearer has left, it may come back."""
        assert not lease.open_requests, "a lease with open requests does not end"
        del self._live[lease.identity], self._by_number[lease.number]
        lease.is_ending = False
        if not lease.has_left:
            lease.outbox = Outbox(self._engine_boot_id)
            self._dormant[lease.identity] = lease
            if len(self._dormant) > MAX_DORMANT:
                self._dormant.popitem(last=False)


def _shares(handles: NDArray[np.int64]) -> list[_Share]:
    request_ids = (handles & _REQUEST_MASK).astype(np.int32)
    numbers = handles >> _REQUEST_BITS
    if numbers[0] == numbers[-1] and (numbers == numbers[0]).all():
        return [_Share(int(numbers[0]), request_ids, None)]
    shares = []
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number)
        shares.append(_Share(number, request_ids[rows], rows))
    return shares
