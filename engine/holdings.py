"""What a running request holds: a slot and KV blocks, the first of them taken over from the prefix cache where it can be."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import IntegrityError
from .kv_blocks import KVBlocks, NewBlockIds, PrefixHit, append_block_hashes, extend_block_hashes
from .request import Request
from .running import NEVER, Running

OFFERED_BLOCKS = 16
"""A request that decodes is looked at for the prefix cache once in so many blocks; what is left when it ends comes then."""


class Holdings:
    """Hands out the slots of `running` and the blocks of `blocks`."""

    def __init__(self, blocks: KVBlocks, running: Running) -> None:
        self._blocks = blocks
        self._running = running
        self._num_slots = len(running.requests)
        self._free_slots = list(range(self._num_slots - 1, -1, -1))

    @property
    def has_free_slot(self) -> bool:
        """Whether one more request can run."""
        return bool(self._free_slots)

    def may_reuse(self, request: Request) -> bool:
        """Whether the prefix cache is asked. Who wants prompt logprobs needs the logits of the whole prompt."""
        return self._blocks.caches_prefixes and not request.owes_prompt_logprobs

    def take(self, request: Request) -> PrefixHit | None:
        """Gives a request a slot and what the cache has of its prefix; None when there is no room for all of its tokens.

        At least one token is left to compute.
        """
        blocks, num_tokens = self._blocks, len(request.token_ids)
        if self.may_reuse(request):
            self._extend_hashes(request)
            hit = blocks.find_prefix(request.block_hashes, num_tokens - 1)
        else:
            hit = blocks.find_prefix((), 0)
        if not blocks.can_start(num_tokens, hit):
            return None
        request.slot = self._free_slots.pop()
        request.blocks = blocks.open(hit)
        request.num_computed_tokens = hit.num_tokens
        first_unhashed = num_tokens // blocks.block_size * blocks.block_size
        offer_at = first_unhashed + OFFERED_BLOCKS * blocks.block_size if blocks.caches_prefixes else NEVER
        self._running.enter(request, first_unhashed, offer_at)
        return hit

    def grow(self, request: Request, first_position: int, num_tokens: int) -> NewBlockIds | None:
        """Blocks for positions [first_position, num_tokens), as appended to the request's rows; None, with nothing taken, when
        there are too few."""
        assert request.blocks is not None, "a running request has blocks"
        appended = self._blocks.grow(request.blocks, first_position, num_tokens)
        if appended is not None:
            self._running.capacity[request.slot] = len(request.blocks.rows[0]) * self._blocks.block_size
        return appended

    def register(self, request: Request, num_computed_tokens: int) -> None:
        """Offers the blocks of known tokens that are full and computed by now to the prefix cache."""
        table = request.blocks
        num_blocks = num_computed_tokens // self._blocks.block_size
        if table is None or not self._blocks.caches_prefixes or num_blocks <= table.num_registered:
            return
        hashes, size = request.block_hashes, self._blocks.block_size
        if len(hashes) < num_blocks:
            if len(hashes) < len(request.token_ids) // size:
                self._extend_hashes(request)
            assert request.slot is not None, "who has blocks has a slot"
            answer = self._running.tail(request.slot, len(hashes) * size, num_blocks * size)
            append_block_hashes(hashes, answer, size, request.cache_salt)
        self._blocks.register(table, hashes, num_blocks)

    def register_decoded(self, slot: int) -> None:
        """Offers the full blocks of a request that decodes: what completed steps computed, all but its last id."""
        request = self._running.requests[slot]
        assert request is not None, "who decodes has a slot"
        num_computed_tokens = int(self._running.num_known[slot]) - 1
        self.register(request, num_computed_tokens)
        size = self._blocks.block_size
        self._running.offer_at[slot] = (num_computed_tokens // size + OFFERED_BLOCKS) * size

    def distrust(self, request: Request) -> None:
        """Takes the request's blocks out of the prefix cache: what is in them may be the reason why it failed."""
        if request.blocks is not None:
            for block_id in request.blocks.owned_block_ids():
                self._blocks.pool.unregister(block_id)

    def give_back(self, request: Request, *, is_trusted: bool) -> None:
        """Takes slot and blocks back. Both may be handed out again at once, see the scheduler.

        What a trusted request has computed can be found afterwards.
        """
        slot = request.slot
        assert request.blocks is not None, "a running request has blocks"
        assert slot is not None, "a running request has a slot"
        if is_trusted and self._running.num_known[slot] > len(request.token_ids):
            self.register_decoded(slot)
        self._running.leave(request)
        self._blocks.close(request.blocks)
        self._free_slots.append(slot)
        request.blocks = None
        request.slot = None

    def check_integrity(self, running: Iterable[Request]) -> None:
        """Audits every block and slot; raises IntegrityError."""
        self._blocks.check_integrity()
        slots = sorted([*self._free_slots, *(request.slot for request in running if request.slot is not None)])
        if slots != list(range(self._num_slots)):
            raise IntegrityError(f"slots are lost or doubled: {slots}")
        wrong = [
            slot
            for slot, request in enumerate(self._running.requests)
            if (request is None) != (slot in self._free_slots) or (request is not None and request.slot != slot)
        ]
        if wrong:
            raise IntegrityError(f"slots {wrong} are not borne by whom the arrays say")

    def _extend_hashes(self, request: Request) -> None:
        extend_block_hashes(request.block_hashes, request.token_ids, self._blocks.block_size, request.cache_salt)
