"""Takes in what a step yielded: tokens to their requests, stops found, outputs made. See scheduler.py for the rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..ipc.messages import FinishReason
from .decoding import DecodeRows
from .outputs import PlainTokens, RequestOutput, StepOutputs, make_output
from .plan import PositionLogprobs, StepResult
from .request import Request, RequestStatus
from .request_book import RequestBook
from .step_draft import LaunchedStep, Share


class Settler:
    """Applies results to the requests of a RequestBook."""

    def __init__(self, book: RequestBook, eos_token_ids: frozenset[int]) -> None:
        self._book = book
        self._slots = book.slots
        self._eos_token_ids = eos_token_ids
        self._last_rows: DecodeRows | None = None
        self._last_s = 0.0

    def settle(self, step: LaunchedStep, result: StepResult, ended: list[RequestOutput], now_s: float) -> StepOutputs:
        """The outputs of a step, after those of requests that `ended` without one."""
        special = ended
        plain = self._settle_decodes(step, result, special, now_s) if len(step.decodes) else None
        for index, share in enumerate(step.chunks, len(step.decodes)):
            output = self._settle_chunk(share, index, result, now_s)
            if output is not None:
                special.append(output)
        self._forget_paid_debts()
        return StepOutputs(special, plain, self._slots.requests)

    def _settle_decodes(
        self, step: LaunchedStep, result: StepResult, special: list[RequestOutput], now_s: float
    ) -> PlainTokens | None:
        """All decodes at once, but for those that may end or have more to tell than tokens."""
        rows = step.decodes
        token_ids = result.token_ids[:, : len(rows)]
        starts = self._slots.num_known[rows.slots]
        is_special = self._find_special(step, starts, token_ids, result)
        is_same = rows is self._last_rows
        self._last_rows = rows
        if is_special is None:
            gap_s = now_s - self._last_s if is_same else None
            self._last_s = now_s
            return self._append(rows.slots, starts, rows.num_prompt_tokens, rows.handles, token_ids, now_s, gap_s)
        self._last_s = now_s
        for row in np.flatnonzero(is_special).tolist():
            output = self._settle_decode(row, rows, result, now_s)
            if output is not None:
                special.append(output)
        plain = np.flatnonzero(~is_special)
        if not len(plain):
            return None
        return self._append(
            rows.slots[plain], starts[plain], rows.num_prompt_tokens[plain], rows.handles[plain], token_ids[:, plain], now_s
        )

    def _find_special(
        self, step: LaunchedStep, starts: NDArray[np.int32], token_ids: NDArray[np.int32], result: StepResult
    ) -> NDArray[np.bool_] | None:
        """[rows]: who must be looked at, some in vain: an id may stop others, or come too early to stop. None: nobody."""
        slots, rows = self._slots, step.decodes
        found: list[NDArray[np.bool_]] = []
        if step.reaches_max:
            found.append(starts + len(token_ids) >= rows.max_num_tokens)
        is_eos = slots.is_eos[token_ids]
        if is_eos.any():
            found.append(np.logical_or.reduce(is_eos & rows.heeds_eos, axis=0))
        if rows.any_stop_ids:
            stops = (slots.num_stopping[token_ids] > 0) & rows.has_stop_ids
            found.append(np.logical_or.reduce(stops, axis=0))
        if rows.any_logprobs:
            found.append(rows.wants_logprobs)
        if result.errors:
            has_failed = np.zeros(len(rows), np.bool_)
            has_failed[[row for row in result.errors if row < len(rows)]] = True
            found.append(has_failed)
        if rows.num_departures != slots.num_departures:
            found.append(slots.epochs[rows.slots] != rows.epochs)
        if not found:
            return None
        is_special = found[0] if len(found) == 1 else np.logical_or.reduce(found)
        return is_special if is_special.any() else None

    def _append(
        self,
        slots: NDArray[np.int64],
        starts: NDArray[np.int32],
        num_prompt_tokens: NDArray[np.int32],
        handles: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        now_s: float,
        gap_s: float | None = None,
    ) -> PlainTokens:
        """Tokens [steps, n] of n requests that go on; `gap_s`: so long after the last ones of all of them."""
        running, num_steps = self._slots, len(token_ids)
        for step in range(num_steps):
            running.token_ids[slots, starts + step] = token_ids[step]
        ends = starts + num_steps
        running.num_known[slots] = ends
        for slot in slots[ends > running.offer_at[slots]].tolist():
            self._book.holdings.register_decoded(slot)
        metrics = self._book.metrics
        metrics.num_generation_tokens += token_ids.size
        if gap_s is not None:
            metrics.on_gap(gap_s / num_steps, num_steps * len(slots))
        else:
            metrics.on_gaps((now_s - running.last_token_s[slots]) / num_steps, num_steps)
        running.last_token_s[slots] = now_s
        return PlainTokens(handles=handles, positions=starts - num_prompt_tokens, token_ids=token_ids, slots=slots)

    def _settle_decode(self, row: int, rows: DecodeRows, result: StepResult, now_s: float) -> RequestOutput | None:
        """One decode's outcome; None where there is nothing to tell."""
        book = self._book
        slot, epoch = int(rows.slots[row]), int(rows.epochs[row])
        is_kept = self._slots.epochs[slot] == epoch
        request = self._slots.requests[slot] if is_kept else book.owed.get((slot, epoch))
        if request is None or request.status is RequestStatus.FINISHED:
            return None
        if not is_kept:
            request.num_pending_tokens -= len(result.token_ids)
        if row in result.errors:
            return self._fail(request, result.errors[row])
        if not is_kept and request.owes_prompt_logprobs:  # lost; the first token comes again together with them
            return None
        return self._take(request, result.token_ids[:, row].tolist(), result.logprobs.get(row), now_s)

    def _settle_chunk(self, share: Share, index: int, result: StepResult, now_s: float) -> RequestOutput | None:
        """One chunk's outcome; None where there is nothing to tell."""
        request = share.request
        if request.status is RequestStatus.FINISHED:
            return None
        is_kept = request.num_preemptions == share.num_preemptions
        if share.samples and not is_kept:
            request.num_pending_tokens -= 1
        if index in result.errors:
            return self._fail(request, result.errors[index])
        if is_kept:
            self._book.holdings.register(request, share.num_computed_tokens)
            if request.owes_prompt_logprobs and index in result.prompt_logprobs:
                request.prompt_logprobs.append(result.prompt_logprobs[index])
        elif request.owes_prompt_logprobs:  # lost; the first token comes again together with them
            return None
        if share.samples:
            return self._take(request, [int(result.token_ids[0, index])], result.logprobs.get(index), now_s)
        is_scored = request.only_scores and is_kept and share.num_computed_tokens == len(request.token_ids)
        return self._book.end(request, FinishReason.LENGTH) if is_scored else None

    def _fail(self, request: Request, error: str) -> RequestOutput:
        self._book.holdings.distrust(request)
        return self._book.end(request, FinishReason.ERROR, error)

    def _take(self, request: Request, sampled: list[int], logprobs: PositionLogprobs | None, now_s: float) -> RequestOutput:
        """Appends sampled tokens to a request, up to the one that ends it."""
        book = self._book
        start = self._slots.num_known_of(request)
        reason, num_taken = None, 0
        while reason is None and num_taken < len(sampled):
            num_taken += 1
            reason = request.reason_to_end(sampled[num_taken - 1], start + num_taken, self._eos_token_ids)
        token_ids = sampled[:num_taken]
        book.learn(request, token_ids)
        self._note_times(request, num_taken, now_s)
        if reason is not None:
            book.release(request, reason)
        return make_output(request, start - request.num_prompt_tokens, token_ids, logprobs=logprobs, reason=reason)

    def _note_times(self, request: Request, num_tokens: int, now_s: float) -> None:
        metrics, slot = self._book.metrics, request.slot
        metrics.num_generation_tokens += num_tokens
        if request.last_token_s is None:
            metrics.on_first_token(request, now_s)
        else:
            last_s = request.last_token_s if slot is None else float(self._slots.last_token_s[slot])
            metrics.on_gap((now_s - last_s) / num_tokens, num_tokens)
        request.last_token_s = now_s
        if slot is not None:
            self._slots.last_token_s[slot] = now_s

    def _forget_paid_debts(self) -> None:
        owed = self._book.owed
        if owed:
            self._book.owed = {
                tenancy: request
                for tenancy, request in owed.items()
                if request.num_pending_tokens and request.status is not RequestStatus.FINISHED
            }
