"""Decides what a step computes; see scheduler.py for the rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .admission import Limits
from .decoding import DecodeRows, Decoding, decode_rows
from .pacing import PromptBudget, RunAhead
from .request import Request
from .request_book import RequestBook
from .step_draft import LaunchedStep, StepDraft


class StepPlanner:
    """Makes plans from a RequestBook, and counts its requests on as if each plan had run."""

    def __init__(self, limits: Limits, book: RequestBook, prompt_budget: PromptBudget, run_ahead: RunAhead) -> None:
        self._max_num_tokens = limits.max_num_batched_tokens
        self._book = book
        self._slots = book.slots
        self._decoding = Decoding(book.slots)
        self._prompt_budget = prompt_budget
        self._run_ahead = run_ahead

    def plan(self) -> LaunchedStep | None:
        """The next step, or None when nothing can be computed at this moment."""
        all_decodes = self._decoding.rows()
        decodes = all_decodes
        if len(decodes) > self._max_num_tokens:
            decodes = decode_rows(self._slots, decodes.slots[: self._max_num_tokens])
        draft = StepDraft(decodes, self._max_num_tokens - len(decodes), len(self._book.blocks.windows))
        if len(decodes):
            self._grow_decodes(draft, self._num_decode_steps(decodes) if decodes is all_decodes else 1)
        if self._book.prefilling or self._book.waiting:
            self._add_prompts(draft)
        if draft.is_empty:
            return None
        return self._launch(draft)

    def _num_decode_steps(self, decodes: DecodeRows) -> int:
        """More than one only while nothing waits and nobody's tokens depend on more than the tokens before."""
        if self._book.waiting or self._book.prefilling:
            return 1
        num_steps = self._run_ahead.num_decode_steps()
        if num_steps == 1:
            return 1
        num_tokens = self._slots.num_tokens[decodes.slots]
        if (num_tokens < self._slots.plain_from[decodes.slots]).any():
            return 1
        return min(num_steps, int((decodes.max_num_tokens - num_tokens).min()))

    def _grow_decodes(self, draft: StepDraft, num_steps: int) -> None:
        """Finds blocks for the decodes. Running ahead takes none away from anybody."""
        if num_steps - 1 <= self._decoding.steps_to_cross:
            draft.num_decode_steps = num_steps
            return
        slots = draft.decodes.slots
        num_tokens = self._slots.num_tokens[slots]
        for steps in dict.fromkeys((num_steps, 1)):
            last = num_tokens + (steps - 1)
            while len(crossing := np.flatnonzero(last > self._slots.capacity[slots])):
                if not self._append_blocks(draft, slots[crossing]):
                    break
            else:
                draft.num_decode_steps = steps
                self._decoding.note_blocks()
                return
        for slot in slots[crossing].tolist():
            request = self._slots.requests[slot]
            if request is not None:  # it may have been preempted for one before it
                end = int(self._slots.num_tokens[slot])
                self._make_room(request, end - 1, end, draft)
        self._drop_departed(draft)

    def _append_blocks(self, draft: StepDraft, slots: NDArray[np.int64]) -> bool:
        """A block more for each of these decodes; False, with nothing taken, when there are too few."""
        blocks = self._book.blocks
        requests = self._slots.requests
        tables = [request.blocks for slot in slots.tolist() if (request := requests[slot]) and request.blocks]
        positions = (self._slots.num_tokens[slots] - 1).tolist() if blocks.has_windows else ()
        appended = blocks.append_each(tables, positions)
        if appended is None:
            return False
        capacity = self._slots.capacity[slots]
        columns = capacity // blocks.block_size
        self._slots.capacity[slots] = capacity + blocks.block_size
        for entries, block_ids in zip(draft.entries, appended, strict=True):
            entries.add(slots, columns, block_ids)
        return True

    def _make_room(self, request: Request, first_position: int, num_tokens: int, draft: StepDraft) -> bool:
        """Blocks for a running request, at the expense of newer ones if need be; False when it was the newest itself."""
        book = self._book
        while (new_block_ids := book.holdings.grow(request, first_position, num_tokens)) is None:
            victim = book.running.newest
            draft.drop(victim)
            book.preempt(victim)
            if victim is request:
                return False
        draft.add_blocks(request, new_block_ids)
        return True

    def _drop_departed(self, draft: StepDraft) -> None:
        """Leaves those decodes that have not been preempted meanwhile."""
        rows = draft.decodes
        is_there = self._slots.epochs[rows.slots] == rows.epochs
        draft.decodes = decode_rows(self._slots, rows.slots[is_there])
        draft.budget += len(rows) - len(draft.decodes)

    def _add_prompts(self, draft: StepDraft) -> None:
        """Chunks of running requests, then of those in the queue unless somebody had to go for what runs."""
        book = self._book
        prefills = list(book.prefilling)
        num_left = book.num_waiting_tokens + sum(request.num_tokens_to_compute for request in prefills)
        wanted = self._prompt_budget.prompt_tokens(len(draft.decodes), num_left)
        draft.limit(max(wanted, book.blocks.block_size))
        for request in prefills:
            if draft.budget <= 0:
                break
            if request.slot is not None:
                self._continue(request, draft)
        if draft.has_preempted:
            self._drop_departed(draft)
            return
        while book.waiting and draft.budget > 0 and book.holdings.has_free_slot:
            request = book.waiting.oldest
            if request.num_pending_tokens or not book.start(request):
                return
            draft.start(request)
            self._continue(request, draft)

    def _continue(self, request: Request, draft: StepDraft) -> None:
        start = request.num_computed_tokens
        num_new_tokens = min(request.num_tokens_to_compute, draft.budget)
        if self._make_room(request, start, start + num_new_tokens, draft):
            draft.add_chunk(request, num_new_tokens)

    def _launch(self, draft: StepDraft) -> LaunchedStep:
        book = self._book
        reaches_max = False
        if draft.decodes is self._decoding.rows():
            self._decoding.advance(draft.num_decode_steps)
            reaches_max = self._decoding.steps_to_close <= 0
        elif len(draft.decodes):
            self._decoding.advance_some(draft.decodes)
            reaches_max = True
        for share in draft.chunks:
            request = share.request
            request.num_computed_tokens = share.num_computed_tokens
            if request.num_tokens_to_compute == 0:
                book.prefilling.remove(request)
                if share.samples and self._slots.sample_first(request):
                    self._decoding.add(request)
        return draft.finish(book.clock(), reaches_max)
