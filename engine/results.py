"""Steps that were launched: what they yield, read back once the device is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .plan import PositionLogprobs, StepResult
from .prompt_logprobs import ScoringPlan
from .sampler import Sampled, SamplingPlan, TopLogprobs
from .staging import start_download

INVALID_LOGITS = "the model produced NaN or infinite logits"


@dataclass(frozen=True, slots=True)
class RaisedStep:
    """A step that raised while it was launched. It has changed nothing a later step could see."""

    error: Exception

    def wait(self) -> StepResult:
        raise self.error


@dataclass(frozen=True, slots=True)
class SampledIndex:
    """A row of logits and whose it is."""

    index: int
    """In the plan's requests."""
    num_top: int | None
    """Top tokens the request wants with each output token."""


@dataclass(frozen=True, slots=True)
class SampledPart:
    """The sampled tokens of a step, on their way to the host."""

    owners: tuple[SampledIndex, ...]
    plan: SamplingPlan
    on_host: Sampled

    def read(self, result: StepResult) -> None:
        """Adds tokens, logprobs and errors to the result."""
        tokens_and_validity = zip(self.owners, self.on_host.token_ids.tolist(), self.on_host.is_valid.tolist(), strict=True)
        for owner, token_id, is_valid in tokens_and_validity:
            if is_valid:
                result.token_ids[owner.index].append(token_id)
            else:
                result.errors[owner.index] = INVALID_LOGITS
        if self.on_host.logprobs is None:
            return
        logprobs = _HostLogprobs(self.on_host.logprobs)
        for place, row in enumerate(self.plan.reported_rows):
            owner = self.owners[row]
            assert owner.num_top is not None
            result.logprobs[owner.index] = logprobs.part(place, 1, owner.num_top)


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


def download_sampled(sampled: Sampled) -> Sampled:
    """Starts the copy to the host."""
    logprobs = None if sampled.logprobs is None else download_logprobs(sampled.logprobs)
    return Sampled(start_download(sampled.token_ids), start_download(sampled.is_valid), logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    """A step whose work is queued on the device (or done, on the CPU)."""

    num_requests: int
    errors: Mapping[int, str]
    """Requests that were left out of the batch."""
    sampled: SampledPart | None
    scored: ScoredPart | None
    synchronize: Callable[[], None]
    """Waits until this step's results are on the host, and for nothing launched after it."""

    def wait(self) -> StepResult:
        self.synchronize()
        result = StepResult(token_ids=[[] for _ in range(self.num_requests)], errors=dict(self.errors))
        if self.sampled is not None:
            self.sampled.read(result)
        if self.scored is not None:
            self.scored.read(result)
        for index in result.errors:
            result.token_ids[index].clear()
            result.logprobs.pop(index, None)
            result.prompt_logprobs.pop(index, None)
        return result
