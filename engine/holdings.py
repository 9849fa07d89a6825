"""What a running request holds: a slot and KV blocks, the first of them taken over from the prefix cache where it can be."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import IntegrityError
from .kv_blocks import KVBlocks, NewBlockIds, PrefixHit, extend_block_hashes
from .request import Request


class Holdings:
    """Hands out slots 0 .. num_slots - 1 and the blocks of `blocks`."""

    def __init__(self, blocks: KVBlocks, num_slots: int) -> None:
        self._blocks = blocks
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))

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
        if self.may_reuse(request):
            self._extend_hashes(request)
            hit = self._blocks.find_prefix(request.block_hashes, request.num_tokens - 1)
        else:
            hit = self._blocks.find_prefix((), 0)
        if not self._blocks.can_start(request.num_tokens, hit):
            return None
        request.slot = self._free_slots.pop()
        request.blocks = self._blocks.open(hit)
        request.num_computed_tokens = hit.num_tokens
        return hit

    def grow(self, request: Request, num_new_tokens: int) -> NewBlockIds | None:
        """Blocks for the next tokens, as appended to the request's rows; None, with nothing taken, when there are too few."""
        assert request.blocks is not None, "a running request has blocks"
        start = request.num_computed_tokens
        return self._blocks.grow(request.blocks, start, start + num_new_tokens)

    def register(self, request: Request, num_computed_tokens: int) -> None:
        """Offers the blocks that are full and computed by now to the prefix cache."""
        table = request.blocks
        num_blocks = num_computed_tokens // self._blocks.block_size
        if table is not None and self._blocks.caches_prefixes and num_blocks > table.num_registered:
            self._extend_hashes(request)
            self._blocks.register(table, request.block_hashes, num_blocks)

    def distrust(self, request: Request) -> None:
        """Takes the request's blocks out of the prefix cache: what is in them may be the reason why it failed."""
        if request.blocks is not None:
            for block_id in request.blocks.owned_block_ids():
                self._blocks.pool.unregister(block_id)

    def give_back(self, request: Request) -> None:
        """Takes slot and blocks back. Both may be handed out again at once, see the scheduler."""
        assert request.blocks is not None, "a running request has blocks"
        assert request.slot is not None, "a running request has a slot"
        self._blocks.close(request.blocks)
        self._free_slots.append(request.slot)
        request.blocks = None
        request.slot = None

    def check_integrity(self, running: Iterable[Request]) -> None:
        """Audits every block and slot; raises IntegrityError."""
        self._blocks.check_integrity()
        slots = sorted([*self._free_slots, *(request.slot for request in running if request.slot is not None)])
        if slots != list(range(self._num_slots)):
            raise IntegrityError(f"slots are lost or doubled: {slots}")

    def _extend_hashes(self, request: Request) -> None:
        extend_block_hashes(request.block_hashes, request.token_ids, self._blocks.block_size, request.cache_salt)
