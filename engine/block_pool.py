"""The pool of KV blocks: who owns which block, and which free blocks still hold a prefix worth finding again.

Every block is in exactly one of three states. *Free*: no owner, no content of use. *Cached*: no owner, but registered under a
key, so that a later request may take it over; given up oldest first when free blocks run out. *Owned*: by one request or,
after a prefix hit, by several; it may be registered too. free + cached + owned == total at every moment.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from .errors import IntegrityError

BlockKey = tuple[int, bytes]
"""(KV group, chained hash of the prefix up to and including the block)."""


class BlockPool:
    """Block ids 0 .. num_blocks - 1. Free blocks are handed out last freed first, cached blocks least recently freed first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_owners = [0] * num_blocks
        self._num_owned = 0
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}

    @property
    def num_free(self) -> int:
        """Blocks without owner and content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without owner whose content can still be found."""
        return len(self._cached)

    @property
    def num_owned(self) -> int:
        """Blocks with one owner or more."""
        return self._num_owned

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._cached)

    def is_owned(self, block_id: int) -> bool:
        """Whether any request holds the block."""
        return self._num_owners[block_id] > 0

    def allocate(self, num_blocks: int) -> list[int]:
        """Hands out blocks to one new owner; cached ones lose their content. There must be enough."""
        assert num_blocks <= self.num_available, "more blocks asked for than there are"
        num_free = min(num_blocks, len(self._free))
        block_ids = self._free[: -num_free - 1 : -1]
        del self._free[len(self._free) - num_free :]
        block_ids += [self._evict() for _ in range(num_blocks - num_free)]
        for block_id in block_ids:
            self._num_owners[block_id] = 1
        self._num_owned += num_blocks
        return block_ids

    def _evict(self) -> int:
        block_id, _ = self._cached.popitem(last=False)
        del self._block_of[self._key_of.pop(block_id)]
        return block_id

    def share(self, block_id: int) -> None:
        """Gives a registered block one more owner."""
        if self._num_owners[block_id] == 0:
            del self._cached[block_id]
            self._num_owned += 1
        self._num_owners[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Takes one owner of each block away; without any a block is cached where it is registered, else free."""
        num_owners, key_of, cached, free = self._num_owners, self._key_of, self._cached, self._free
        for block_id in block_ids:
            num_left = num_owners[block_id] = num_owners[block_id] - 1
            if num_left == 0:
                self._num_owned -= 1
                if block_id in key_of:
                    cached[block_id] = None
                else:
                    free.append(block_id)

    def register(self, group: int, block_ids: Sequence[int | None], digests: Sequence[bytes]) -> None:
        """Makes owned blocks' content findable, None left out. Where another block has the same content, that one stays."""
        block_of, key_of = self._block_of, self._key_of
        for block_id, digest in zip(block_ids, digests, strict=True):
            if block_id is not None and block_id not in key_of:
                key = (group, digest)
                if block_of.setdefault(key, block_id) == block_id:
                    key_of[block_id] = key

    def find(self, key: BlockKey) -> int | None:
        """The block registered under `key`, owned or cached."""
        return self._block_of.get(key)

    def unregister(self, block_id: int) -> None:
        """An owned block's content cannot be found any more, if it could."""
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]

    def forget_content(self) -> None:
        """No block's content can be found any more; owners keep their blocks."""
        self._free += self._cached
        self._cached.clear()
        self._block_of.clear()
        self._key_of.clear()

    def check_counts(self) -> None:
        """The sum alone, in constant time; raises IntegrityError."""
        counted = self.num_free + self.num_cached + self.num_owned
        if counted != self.num_blocks:
            raise IntegrityError(
                f"{self.num_free} free + {self.num_cached} cached + {self.num_owned} owned are {counted} blocks "
                f"and not {self.num_blocks}"
            )

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Audits every block against the tables of all owners; raises IntegrityError with the blocks that do not fit."""
        self.check_counts()
        owners = Counter(block_id for table in tables for block_id in table)
        wrong = [i for i in range(self.num_blocks) if owners[i] != self._num_owners[i]]
        if wrong:
            details = ", ".join(f"{i}: {self._num_owners[i]} counted, {owners[i]} in tables" for i in wrong[:8])
            raise IntegrityError(f"owners of {len(wrong)} blocks differ ({details})")
        idle = [*self._free, *self._cached]
        if len(set(idle)) != len(idle) or any(self._num_owners[i] for i in idle):
            raise IntegrityError(f"a block is free or cached twice, or while owned: {sorted(idle)[:32]}")
        if {block_id: key for key, block_id in self._block_of.items()} != self._key_of:
            raise IntegrityError("the two directions of the prefix cache's index differ")
        if not self._key_of.keys() >= self._cached.keys() or self._key_of.keys() & set(self._free):
            raise IntegrityError("a cached block has no key, or a free one has")
