"""Steps that were launched: what they yield, read back once the device is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels.step_state import INVALID_TOKEN
from .batch import Batch
from .plan import NO_TOKEN, PositionLogprobs, StepResult
from .prompt_logprobs import ScoringPlan
from .sampler import TopLogprobs
from .staging import start_download

INVALID_LOGITS = "the model produced NaN or infinite logits"


@dataclass(frozen=True, slots=True)
class RaisedStep:
    """A step that raised while it was launched."""

    error: Exception

    def wait(self) -> StepResult:
        raise self.error


@dataclass(frozen=True, slots=True)
class ReportedPart:
    """Logprobs of sampled tokens, on their way to the host."""

    rows: tuple[tuple[int, int], ...]
    """(row of the plan, how many top tokens)."""
    on_host: TopLogprobs

    def read(self, result: StepResult) -> None:
        """Adds them to the result."""
        logprobs = _HostLogprobs(self.on_host)
        for place, (index, num_top) in enumerate(self.rows):
            result.logprobs[index] = logprobs.part(place, 1, num_top)


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """The scores of a step's prompt tokens, on their way to the host."""

    plan: ScoringPlan
    on_host: TopLogprobs
    is_valid: torch.Tensor

    def read(self, result: StepResult) -> None:
        """Adds prompt logprobs and errors to the result."""
        logprobs = _HostLogprobs(self.on_host)
        is_valid = self.is_valid.tolist()
        start = 0
        for segment in self.plan.segments:
            if not all(is_valid[start : start + segment.num_positions]):
                result.errors[segment.index] = INVALID_LOGITS
            result.prompt_logprobs[segment.index] = logprobs.part(start, segment.num_positions, segment.num_top)
            start += segment.num_positions


class _HostLogprobs:
    def __init__(self, tensors: TopLogprobs) -> None:
        self._token_ids, self._logprobs = tensors.token_ids.tolist(), tensors.logprobs.tolist()
        self._ranks = tensors.ranks.tolist()

    def part(self, start: int, num_positions: int, num_top: int) -> PositionLogprobs:
        rows = slice(start, start + num_positions)
        return PositionLogprobs(
            token_ids=[ids[: 1 + num_top] for ids in self._token_ids[rows]],
            logprobs=[values[: 1 + num_top] for values in self._logprobs[rows]],
            ranks=self._ranks[rows],
        )


def download_logprobs(tensors: TopLogprobs) -> TopLogprobs:
    """Starts the copy to the host."""
    return TopLogprobs(start_download(tensors.token_ids), start_download(tensors.logprobs), start_download(tensors.ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    """A step whose work is queued on the device (or done, on the CPU)."""

    batch: Batch
    num_plan_rows: int
    token_ids: torch.Tensor
    """int32 [num_decode_steps, rows of the batch], on its way to the host."""
    reported: ReportedPart | None
    scored: ScoredPart | None
    synchronize: Callable[[], None]
    """Waits until this step's results are on the host, and for nothing launched after it."""

    def wait(self) -> StepResult:
        self.synchronize()
        token_ids = self._plan_rows(self.token_ids.numpy())
        result = StepResult(token_ids=token_ids, errors=dict(self.batch.errors))
        is_invalid = (token_ids == INVALID_TOKEN).any(0)
        if is_invalid.any():
            result.errors.update(dict.fromkeys(np.flatnonzero(is_invalid).tolist(), INVALID_LOGITS))
        for part in (self.reported, self.scored):
            if part is not None:
                part.read(result)
        for index in result.errors:
            token_ids[:, index] = NO_TOKEN
            result.logprobs.pop(index, None)
            result.prompt_logprobs.pop(index, None)
        return result

    def _plan_rows(self, token_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """A copy with a column per row of the plan; the pinned memory is free for the next step."""
        if self.batch.indices is None:
            return token_ids.copy()
        spread = np.full((len(token_ids), self.num_plan_rows), NO_TOKEN, np.int32)
        spread[:, self.batch.indices] = token_ids
        return spread
