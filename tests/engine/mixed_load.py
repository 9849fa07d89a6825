"""Random requests of every kind, some of them given up, against an engine core, and a strict reader of what comes out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penstock.engine.core import EngineCore
from penstock.engine.outputs import RequestOutput
from penstock.ipc.messages import FinishReason, Sampling, Submit
from tests.engine.generating import submission

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "ignore_eos": False},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 40},
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 1.4, "top_k": 200, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 0.7, "repetition_penalty": 1.1},
    {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 1.0, "logit_bias": {5: 3.0, 17: -100.0}},
    {"temperature": 0.0, "logprobs": 0},
    {"temperature": 1.0, "top_p": 0.9, "logprobs": 5, "frequency_penalty": 0.2},
    {"temperature": 0.0, "prompt_logprobs": 1},
    {"temperature": 1.0, "min_tokens": 10, "ignore_eos": False},
)
STOPPING_SHARE, ABORTED_SHARE, SHARED_SHARE = 0.2, 0.1, 0.4
"""Of the requests: those with stop ids that come up by chance, those that are aborted, those with a common beginning."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much, and how long. Lengths of prompts are spread evenly on a logarithmic scale."""

    num_requests: int
    max_prompt_tokens: int
    max_output_tokens: int
    vocab_size: int
    max_open: int
    """Requests at once in the engine, those that wait included."""
    seed: int = 0


@dataclass
class Open:
    """A request that has not ended, and what is known of it."""

    sampling: Sampling
    num_prompt_tokens: int
    aborts_at: int | None
    """Number of output tokens."""
    token_ids: list[int] = field(default_factory=list)
    is_aborted: bool = False

    def read(self, output: RequestOutput) -> None:
        """Checks an output against what was asked for."""
        sampling = self.sampling
        assert output.error is None, output.error
        assert output.position == len(self.token_ids)
        self.token_ids += output.token_ids
        assert len(self.token_ids) <= sampling.max_tokens
        if sampling.logprobs is not None and output.token_ids:
            assert output.logprobs is not None
            assert [row[0] for row in output.logprobs.token_ids] == output.token_ids
            assert all(len(row) == 1 + sampling.logprobs for row in output.logprobs.logprobs)
            assert np.isfinite(output.logprobs.logprobs).all()
        if output.prompt_logprobs is not None:
            assert len(output.prompt_logprobs.token_ids) == self.num_prompt_tokens - 1
        if output.finish_reason is not None:
            self._check_end(output.finish_reason)

    def _check_end(self, reason: FinishReason) -> None:
        sampling, stops = self.sampling, set(self.sampling.stop_token_ids)
        first = next((i for i, token in enumerate(self.token_ids) if token in stops and i + 1 >= sampling.min_tokens), None)
        assert first is None or first == len(self.token_ids) - 1, "it went on after a stop id"
        if reason is FinishReason.LENGTH:
            assert len(self.token_ids) == sampling.max_tokens
        elif reason is FinishReason.STOP:
            assert first is not None or not sampling.ignore_eos
        else:
            assert reason is FinishReason.ABORT, reason
            assert self.is_aborted


class MixedLoad:
    """Keeps an engine busy with requests drawn from `load.seed`."""

    def __init__(self, core: EngineCore, load: Load) -> None:
        self._core, self._load = core, load
        self._random = random.Random(load.seed)
        shared_length = load.max_prompt_tokens // 2
        self._shared = [self._ids(shared_length) for _ in range(3)]
        self._num_submitted = 0
        self.open: dict[int, Open] = {}
        self.ended: Counter[FinishReason] = Counter()

    def run(self) -> None:
        """Until all requests have ended; now and then checks that the engine's books are in order."""
        num_steps = 0
        while self._core.has_work or self._num_submitted < self._load.num_requests:
            while len(self.open) < self._load.max_open and self._num_submitted < self._load.num_requests:
                self._submit()
            for output in self._core.step():
                self._read(output)
            num_steps += 1
            if num_steps % 64 == 0:
                self._core.scheduler.check_integrity()
        assert not self.open, f"{len(self.open)} requests never ended"
        assert self.ended.total() == self._load.num_requests
        self._core.scheduler.check_integrity()
        self._core.scheduler.blocks.check_idle()

    def _read(self, output: RequestOutput) -> None:
        assert isinstance(output.key, int)
        assert output.key in self.open, "an output of a request that has ended"
        request = self.open[output.key]
        request.read(output)
        if output.finish_reason is not None:
            self.ended[output.finish_reason] += 1
            del self.open[output.key]
        elif request.aborts_at is not None and len(request.token_ids) >= request.aborts_at and not request.is_aborted:
            self._abort(output.key)

    def _abort(self, key: int) -> None:
        self.open[key].is_aborted = True
        self._core.abort(key)

    def _submit(self) -> None:
        self._num_submitted += 1
        key, numbers = self._num_submitted, self._random
        prompt = self._prompt()
        fields = dict(numbers.choice(KINDS), max_tokens=numbers.randint(1, self._load.max_output_tokens))
        fields["min_tokens"] = min(fields.get("min_tokens", 0), fields["max_tokens"])
        if numbers.random() < STOPPING_SHARE:
            fields["stop_token_ids"] = tuple(self._ids(self._load.vocab_size // 20))
        submit: Submit = submission(key, prompt, **fields)
        aborts_at = numbers.randint(0, fields["max_tokens"]) if numbers.random() < ABORTED_SHARE else None
        self.open[key] = Open(submit.sampling, len(prompt), aborts_at)
        self._core.submit(key, submit)
        if aborts_at == 0:
            self._abort(key)

    def _prompt(self) -> list[int]:
        numbers, longest = self._random, self._load.max_prompt_tokens
        prompt = self._ids(round(longest ** numbers.random()))
        if numbers.random() < SHARED_SHARE:
            shared = numbers.choice(self._shared)
            prompt = [*shared[: numbers.randint(1, len(shared))], *prompt][:longest]
        return prompt

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(3, self._load.vocab_size) for _ in range(count)]
