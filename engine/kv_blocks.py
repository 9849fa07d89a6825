"""Which KV blocks each request has: block tables over KV groups, on demand, with prefix reuse and sliding windows.

Layers that keep the same KV form a group; a group sees the whole context (window None) or the last `window` tokens. All
groups draw from one pool. A request has one row of block ids per group, block i holding positions i * block_size onwards. A
window group gives back the blocks no later query can see: the entry becomes None here. The runner's row only ever grows: it
keeps the stale id, or gets ABSENT_BLOCK_ID where a prefix hit skipped the block, and never reads it, for it reads positions
inside the window alone.

A full block is found again by a blake2b digest of (salt, all token ids up to its end), per group. A prefix hit must be usable
in every group: all its blocks in a full group, those inside the window in a window group.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .block_pool import BlockPool
from .errors import IntegrityError

ABSENT_BLOCK_ID = 0
"""What the runner's row holds for a block that a prefix hit left out because it is behind the window."""
_DIGEST_BYTES = 16

NewBlockIds = tuple[tuple[int, ...], ...]
"""Per KV group the ids appended to the runner's row."""


@dataclass(slots=True, eq=False)
class BlockTable:
    """One request's blocks. All rows have the same length; `rows[group][i]` is None once the block has left the window."""

    rows: list[list[int | None]]
    num_freed: list[int]
    """Per group: how many leading blocks have left the window."""
    num_registered: int = 0
    """Leading blocks that were offered to the prefix cache."""

    def owned_block_ids(self) -> list[int]:
        """All groups' blocks."""
        return [block_id for row in self.rows for block_id in row if block_id is not None]


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """A prefix every group can reuse: `rows[group]` has its blocks, None where they are behind the window."""

    num_tokens: int
    rows: tuple[tuple[int | None, ...], ...]


def extend_block_hashes(hashes: list[bytes], token_ids: array[int], block_size: int, salt: str) -> None:
    """Appends the chained digests of the full blocks of int32 `token_ids` that `hashes` lacks."""
    append_block_hashes(hashes, token_ids[len(hashes) * block_size :].tobytes(), block_size, salt)


def append_block_hashes(hashes: list[bytes], token_bytes: bytes, block_size: int, salt: str) -> None:
    """The same for the int32 ids that follow those of `hashes`; ids of a block that is not full are left out."""
    parent = hashes[-1] if hashes else blake2b(salt.encode(), digest_size=_DIGEST_BYTES).digest()
    num_block_bytes = 4 * block_size
    for start in range(0, len(token_bytes) - num_block_bytes + 1, num_block_bytes):
        parent = blake2b(parent + token_bytes[start : start + num_block_bytes], digest_size=_DIGEST_BYTES).digest()
        hashes.append(parent)


class KVBlocks:
    """The block tables of all running requests over one pool."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        windows: Sequence[int | None] = (None,),
        max_step_tokens: int,
        caches_prefixes: bool,
    ) -> None:
        """`max_step_tokens` bounds what one request computes in one step, and so what a window group can need at once."""
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.windows = tuple(windows)
        self.caches_prefixes = caches_prefixes
        self._max_step_tokens = max_step_tokens
        self._window_groups = [group for group, window in enumerate(self.windows) if window is not None]
        self._nothing: NewBlockIds = tuple(() for _ in self.windows)
        self._tables: set[BlockTable] = set()

    @property
    def has_windows(self) -> bool:
        """Whether any group sees less than the whole context."""
        return bool(self._window_groups)

    @property
    def usage(self) -> float:
        """Share of the blocks that requests own, 0 .. 1."""
        return self.pool.num_owned / self.pool.num_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Most blocks a request of so many tokens holds at once, in all groups."""
        whole = -(-num_tokens // self.block_size)
        total = 0
        for window in self.windows:
            if window is None:
                total += whole
            else:
                num_visible = window - 1 + self._max_step_tokens
                total += min(whole, (num_visible + self.block_size - 2) // self.block_size + 1)
        return total

    def find_prefix(self, hashes: Sequence[bytes], max_num_tokens: int) -> PrefixHit:
        """The longest cached prefix of whole blocks and at most `max_num_tokens` tokens that every group can reuse."""
        num_blocks = min(len(hashes), max_num_tokens // self.block_size) if self.caches_prefixes else 0
        rows = []
        for group, window in enumerate(self.windows):
            row: list[int | None] = []
            for digest in hashes[:num_blocks]:
                block_id = self.pool.find((group, digest))
                if block_id is None and window is None:
                    break
                row.append(block_id)
            num_blocks = min(num_blocks, len(row))
            rows.append(row)
        while num_blocks and not all(self._is_visible_part_cached(g, row, num_blocks) for g, row in enumerate(rows)):
            num_blocks -= 1
        num_tokens = num_blocks * self.block_size
        return PrefixHit(num_tokens, tuple(self._only_visible(group, row[:num_blocks]) for group, row in enumerate(rows)))

    def _is_visible_part_cached(self, group: int, row: Sequence[int | None], num_blocks: int) -> bool:
        return None not in row[self._first_visible(group, num_blocks * self.block_size) : num_blocks]

    def _only_visible(self, group: int, row: Sequence[int | None]) -> tuple[int | None, ...]:
        first = self._first_visible(group, len(row) * self.block_size)
        return (*(None for _ in row[:first]), *row[first:])

    def _first_visible(self, group: int, position: int) -> int:
        """Index of the first block that a query at `position` or later can see."""
        window = self.windows[group]
        return 0 if window is None else max(0, position - window + 1) // self.block_size

    def can_start(self, num_tokens: int, hit: PrefixHit) -> bool:
        """Whether a request of so many tokens finds room next to those that run, after taking over `hit`."""
        hit_ids = [block_id for row in hit.rows for block_id in row if block_id is not None]
        num_taken_from_cache = sum(not self.pool.is_owned(block_id) for block_id in hit_ids)
        return self.num_blocks_for(num_tokens) - len(hit_ids) <= self.pool.num_available - num_taken_from_cache

    def open(self, hit: PrefixHit) -> BlockTable:
        """A new request's table, starting with the blocks of `hit`."""
        rows = [list(row) for row in hit.rows]
        num_blocks = hit.num_tokens // self.block_size
        num_freed = [self._first_visible(group, hit.num_tokens) for group in range(len(rows))]
        table = BlockTable(rows, num_freed, num_registered=num_blocks)
        for block_id in table.owned_block_ids():
            self.pool.share(block_id)
        self._tables.add(table)
        return table

    def grow(self, table: BlockTable, first_position: int, num_tokens: int) -> NewBlockIds | None:
        """Makes room for positions [first_position, num_tokens), which the next step computes.

        Gives back what no query at `first_position` or later can see. Returns the appended ids per group, or None, with nothing
        appended, when the pool has too few blocks.
        """
        for group in self._window_groups:
            self._free_behind_window(table, group, first_position)
        num_missing = -(-num_tokens // self.block_size) - len(table.rows[0])
        if num_missing <= 0:
            return self._nothing
        if num_missing * len(table.rows) > self.pool.num_available:
            return None
        appended = []
        for row in table.rows:
            block_ids = self.pool.allocate(num_missing)
            row.extend(block_ids)
            appended.append(tuple(block_ids))
        return tuple(appended)

    def append_each(self, tables: Sequence[BlockTable], first_positions: Sequence[int]) -> list[list[int]] | None:
        """One block more for each table, whose next query is at its first position: per group the ids, one a table.

        Gives back what those queries cannot see; without windows, positions are not looked at. None, with nothing appended,
        when the pool has too few blocks.
        """
        for group in self._window_groups:
            for table, first_position in zip(tables, first_positions, strict=True):
                self._free_behind_window(table, group, first_position)
        if len(tables) * len(self.windows) > self.pool.num_available:
            return None
        appended = []
        for group in range(len(self.windows)):
            block_ids = self.pool.allocate(len(tables))
            for table, block_id in zip(tables, block_ids, strict=True):
                table.rows[group].append(block_id)
            appended.append(block_ids)
        return appended

    def _free_behind_window(self, table: BlockTable, group: int, first_position: int) -> None:
        row = table.rows[group]
        first = min(self._first_visible(group, first_position), len(row))
        for index in range(table.num_freed[group], first):
            block_id = row[index]
            if block_id is not None:
                self.pool.release((block_id,))
            row[index] = None
        table.num_freed[group] = max(table.num_freed[group], first)

    def register(self, table: BlockTable, hashes: Sequence[bytes], num_blocks: int) -> None:
        """Offers the table's first `num_blocks` blocks, whose content is computed, to the prefix cache."""
        first = table.num_registered
        if num_blocks <= first:
            return
        for group, row in enumerate(table.rows):
            self.pool.register(group, row[first:num_blocks], hashes[first:num_blocks])
        table.num_registered = num_blocks

    def close(self, table: BlockTable) -> None:
        """Gives all blocks back, tail first, so that of a cached prefix the end is given up before the start."""
        self._tables.remove(table)
        for row in table.rows:
            self.pool.release([block_id for block_id in reversed(row) if block_id is not None])

    def check_idle(self) -> None:
        """In constant time: with no request running, no block is owned. Raises IntegrityError."""
        self.pool.check_counts()
        if not self._tables and self.pool.num_owned:
            raise IntegrityError(f"{self.pool.num_owned} blocks are owned and no request runs")

    def check_integrity(self) -> None:
        """Audits every block: free + cached + owned == total, and the tables own what the pool says. Raises IntegrityError."""
        self.pool.check_integrity(table.owned_block_ids() for table in self._tables)
