"""A tiny model behind a ModelRunner, and a scheduler just clever enough to drive it in tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from penstock.engine.model_runner import ModelRunner
from penstock.engine.models import CausalLM
from penstock.engine.plan import NO_TOKEN, NewBlocks, PendingStep, ScheduledChunk, StartedRequest, StepPlan, StepResult
from penstock.ipc.messages import Sampling
from tests.engine.tiny_model import MAX_MODEL_LEN, NAN_TOKEN_ID, make_model, tiny_config

BLOCK_SIZES = {"cpu": 4, "cuda": 16}
MAX_NUM_SEQS = 6
NUM_BLOCKS = 2 * MAX_NUM_SEQS * MAX_MODEL_LEN // 4
PROMPT_LENGTHS = (3, 17, 1, 30)
DRAWN: list[dict[str, Any]] = [
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.3, "seed": 2**62 + 5, "top_k": 40, "top_p": 0.95, "min_p": 0.001},
    {},
    {"temperature": 1.0, "seed": 8, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
]


def sampling(**fields: Any) -> Sampling:
    """Greedy unless `fields` say otherwise."""
    return Sampling(**{"seed": 1, "max_tokens": 64, "temperature": 0.0, **fields})


@dataclass
class Request:
    """A request and how far it has come."""

    slot: int
    prompt: list[int]
    sampling: Sampling
    num_tokens: int = 12
    """Output tokens to make."""
    output: list[int] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)
    """Of its steps, each cut down to this request as index 0."""
    error: str | None = None
    is_started: bool = False
    has_sampled: bool = False
    """Since it was started: the device knows its last token."""
    num_computed: int = 0
    num_launched: int = 0
    """Output tokens whose sampling has been launched."""
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    """Ids per KV group, column by column."""

    @property
    def decodes(self) -> bool:
        """Whether its next step computes the token that the device sampled last."""
        return self.has_sampled

    def preempt(self) -> None:
        """Its KV is gone; it starts again with what it has said so far."""
        self.is_started, self.has_sampled, self.num_computed, self.blocks = False, False, 0, []
        self.num_launched = len(self.output)

    @property
    def is_done(self) -> bool:
        return self.error is not None or len(self.output) >= self.num_tokens


def make_prompts(lengths: tuple[int, ...] = PROMPT_LENGTHS) -> list[list[int]]:
    """Random prompts of these lengths."""
    return [[random.randrange(10, NAN_TOKEN_ID) for _ in range(length)] for length in lengths]


def requests_for(prompts: list[list[int]], *settings: dict[str, Any]) -> list[Request]:
    """A request per prompt, each in a slot of its own; settings are taken in turn, greedy where there are none."""
    chosen = settings or ({},)
    return [Request(slot, prompt, sampling(**chosen[slot % len(chosen)])) for slot, prompt in enumerate(prompts)]


class Driver:
    """Plans, launches and reads steps. Block ids are handed out in a scattered order and differ between KV groups."""

    def __init__(
        self,
        windows: tuple[int | None, ...] = (None, None),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        model: CausalLM | None = None,
        **settings: Any,
    ) -> None:
        """`settings` as of ModelRunner."""
        self.config = tiny_config(windows, device)
        self.block_size = BLOCK_SIZES[device]
        self.device = torch.device(device)
        self.model = model or make_model(self.config, device, dtype)
        self.runner = ModelRunner(
            self.model,
            self.config,
            device=self.device,
            dtype=dtype,
            num_blocks=NUM_BLOCKS,
            block_size=self.block_size,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=512,
            **{"max_model_len": MAX_MODEL_LEN, **settings},
        )
        self._free_blocks = [(31 * i) % NUM_BLOCKS for i in range(NUM_BLOCKS)]
        assert len(set(self._free_blocks)) == NUM_BLOCKS

    def plan(self, requests: Sequence[Request], chunk: int | None = None, num_decode_steps: int = 1) -> StepPlan:
        """A step in which each request gets on: by `chunk` known tokens, or by those that the device samples."""
        started: list[StartedRequest] = []
        chunks: list[ScheduledChunk] = []
        new_blocks: list[tuple[int, int, tuple[int, ...]]] = []
        decodes = [request for request in requests if request.decodes]
        for request in decodes:
            request.num_launched += num_decode_steps
            self._compute(request, num_decode_steps, new_blocks)
        for request in requests:
            if request not in decodes:
                if not request.is_started:
                    started.append(_start(request))
                    new_blocks += [(request.slot, column, block_ids) for column, block_ids in enumerate(request.blocks)]
                chunks.append(self._plan_chunk(request, chunk, new_blocks))
        return StepPlan(
            started=tuple(started),
            decode_slots=np.array([request.slot for request in decodes], np.int32),
            chunks=tuple(chunks),
            new_blocks=tuple(
                NewBlocks(
                    slots=np.array([slot for slot, _, _ in new_blocks], np.int32),
                    columns=np.array([column for _, column, _ in new_blocks], np.int32),
                    block_ids=np.array([ids[group] for _, _, ids in new_blocks], np.int32),
                )
                for group in range(len(self.config.kv_groups))
            ),
            num_decode_steps=num_decode_steps,
        )

    def _plan_chunk(
        self, request: Request, chunk: int | None, new_blocks: list[tuple[int, int, tuple[int, ...]]]
    ) -> ScheduledChunk:
        known = request.prompt + request.output
        start = request.num_computed
        num_new = min(chunk or len(known), len(known) - start)
        self._compute(request, num_new, new_blocks)
        samples_position = None
        if request.num_computed == len(known):
            samples_position = request.num_launched
            request.num_launched += 1
            request.has_sampled = True
        return ScheduledChunk(
            slot=request.slot,
            num_computed_tokens=start,
            token_ids=np.array(known[start : start + num_new], np.int32),
            samples_position=samples_position,
        )

    def _compute(self, request: Request, num_tokens: int, new_blocks: list[tuple[int, int, tuple[int, ...]]]) -> None:
        """Counts tokens on and gives the request the blocks they need."""
        request.num_computed += num_tokens
        while len(request.blocks) * self.block_size < request.num_computed:
            block_ids = tuple(self._free_blocks.pop(0) for _ in self.config.kv_groups)
            new_blocks.append((request.slot, len(request.blocks), block_ids))
            request.blocks.append(block_ids)

    def read(self, plan: StepPlan, requests: Sequence[Request], pending: PendingStep) -> None:
        """Waits for a step and hands each request its part."""
        result = pending.wait()
        by_slot = {request.slot: request for request in requests}
        for row, slot in enumerate([*plan.decode_slots.tolist(), *(chunk.slot for chunk in plan.chunks)]):
            request, tokens = by_slot[slot], result.token_ids[:, row]
            own = StepResult(
                token_ids=tokens[:, None],
                logprobs={0: result.logprobs[row]} if row in result.logprobs else {},
                prompt_logprobs={0: result.prompt_logprobs[row]} if row in result.prompt_logprobs else {},
            )
            request.results.append(own)
            request.error = result.errors.get(row)
            request.output += tokens[tokens != NO_TOKEN].tolist()

    def run(
        self, requests: Sequence[Request], chunk: int | None = None, steps_ahead: int = 0, num_decode_steps: int = 1
    ) -> list[list[int]]:
        """Runs all to their end; up to `steps_ahead` steps are launched before the oldest one is read."""
        in_flight: list[tuple[StepPlan, list[Request], PendingStep]] = []
        while True:
            open_requests = [request for request in requests if request.num_launched < request.num_tokens and not request.error]
            if open_requests:
                num_left = min(request.num_tokens - request.num_launched for request in open_requests)
                only_decodes = all(request.decodes for request in open_requests)
                plan = self.plan(open_requests, chunk, min(num_decode_steps, num_left) if only_decodes else 1)
                in_flight.append((plan, open_requests, self.runner.launch(plan)))
            if not in_flight:
                return [request.output for request in requests]
            if len(in_flight) > steps_ahead or not open_requests:
                self.read(*in_flight.pop(0))

    def share_prefix(self, owner: Request, others: Sequence[Request], num_tokens: int) -> None:
        """Gives requests that have not started the first blocks of one that has computed as many tokens of the same prompt."""
        for request in others:
            request.num_computed, request.blocks = num_tokens, owner.blocks[: num_tokens // self.block_size]

    def poison_kv_cache(self) -> None:
        """Fills the cache with NaN, as if it held the remains of something broken."""
        for pair in self.runner._program.kv_caches:
            for cache in pair:
                cache.fill_(torch.nan)


def _start(request: Request) -> StartedRequest:
    request.is_started = True
    return StartedRequest(
        slot=request.slot,
        sampling=request.sampling,
        prompt_token_ids=request.prompt,
        output_token_ids=list(request.output),
    )
