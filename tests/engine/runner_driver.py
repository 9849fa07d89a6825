"""A tiny model with random weights behind a ModelRunner, and a scheduler just clever enough to drive it in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.engine.dummy_weights import fill_with_dummy_weights
from penstock.engine.model_config import ModelConfig
from penstock.engine.model_runner import ModelRunner
from penstock.engine.models import CausalLM, build_model
from penstock.engine.plan import PendingStep, ScheduledRequest, StartedRequest, StepPlan, StepResult
from penstock.engine.rope_config import DefaultRope
from penstock.ipc.messages import Sampling
from penstock.kernels import ops

VOCAB_SIZE = 307
EOS_TOKEN_ID = 5
BLOCK_SIZE = 4
MAX_MODEL_LEN = 96
MAX_NUM_SEQS = 6
NUM_BLOCKS = 2 * MAX_NUM_SEQS * MAX_MODEL_LEN // BLOCK_SIZE


def tiny_config(windows: tuple[int | None, ...] = (None, None)) -> ModelConfig:
    """A layer per window; odd sizes on purpose."""
    return ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=VOCAB_SIZE,
        hidden_size=40,
        num_layers=len(windows),
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        intermediate_size=56,
        rms_norm_eps=1e-6,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=True,
        rope=DefaultRope(theta=10000.0),
        layer_windows=windows,
        dtype="float32",
        eos_token_ids=(EOS_TOKEN_ID,),
        generation_defaults={},
    )


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
    num_computed: int = 0
    num_launched: int = 0
    """Output tokens whose sampling has been launched."""
    num_blocks: int = 0

    def preempt(self) -> None:
        """Its KV is gone; it starts again with what it has said so far."""
        self.is_started, self.num_computed, self.num_launched, self.num_blocks = False, 0, len(self.output), 0

    @property
    def is_done(self) -> bool:
        return self.error is not None or len(self.output) >= self.num_tokens


class Driver:
    """Plans, launches and reads steps. Block ids are handed out in a scattered order and differ between KV groups."""

    def __init__(
        self,
        windows: tuple[int | None, ...] = (None, None),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        model: CausalLM | None = None,
    ) -> None:
        self.config = tiny_config(windows)
        self.device = torch.device(device)
        self.model = model or make_model(self.config, device, dtype)
        self.runner = ModelRunner(
            self.model,
            self.config,
            device=self.device,
            dtype=dtype,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=512,
            max_model_len=MAX_MODEL_LEN,
        )
        self._free_blocks = [(31 * i) % NUM_BLOCKS for i in range(NUM_BLOCKS)]
        assert len(set(self._free_blocks)) == NUM_BLOCKS

    def plan(self, requests: Sequence[Request], chunk: int | None = None) -> StepPlan:
        """A step in which each request gets on: by `chunk` known tokens, or by the one that the device sampled last."""
        started, scheduled = [], []
        for request in requests:
            if not request.is_started:
                request.is_started = True
                started.append(
                    StartedRequest(
                        slot=request.slot,
                        sampling=request.sampling,
                        prompt_token_ids=request.prompt,
                        output_token_ids=list(request.output),
                    )
                )
            scheduled.append(self._schedule(request, chunk))
        return StepPlan(started=tuple(started), requests=tuple(scheduled))

    def _schedule(self, request: Request, chunk: int | None) -> ScheduledRequest:
        known = request.prompt + request.output
        start = request.num_computed
        num_left = len(request.prompt) + request.num_launched - start
        num_new = min(chunk or num_left, num_left)
        token_ids = known[start : start + num_new] if start + num_new <= len(known) else None
        if request.num_launched > 0 and num_left == 1:
            token_ids = None
        request.num_computed += num_new
        num_added = -(-request.num_computed // BLOCK_SIZE) - request.num_blocks
        request.num_blocks += num_added
        groups = range(len(self.config.kv_groups))
        samples_position = None
        if num_new == num_left:
            samples_position = request.num_launched
            request.num_launched += 1
        return ScheduledRequest(
            slot=request.slot,
            num_computed_tokens=start,
            num_new_tokens=num_new,
            token_ids=token_ids,
            new_block_ids=tuple(tuple(self._free_blocks.pop(0) for _ in range(num_added)) for _ in groups),
            samples_position=samples_position,
        )

    def read(self, requests: Sequence[Request], pending: PendingStep) -> None:
        """Waits for a step and hands each request its part."""
        result = pending.wait()
        for index, request in enumerate(requests):
            own = StepResult(
                token_ids=[result.token_ids[index]],
                logprobs={0: result.logprobs[index]} if index in result.logprobs else {},
                prompt_logprobs={0: result.prompt_logprobs[index]} if index in result.prompt_logprobs else {},
            )
            request.results.append(own)
            request.error = result.errors.get(index)
            request.output += result.token_ids[index]

    def run(self, requests: Sequence[Request], chunk: int | None = None, steps_ahead: int = 0) -> list[list[int]]:
        """Runs all to their end; up to `steps_ahead` steps are launched before the oldest one is read."""
        in_flight: list[tuple[list[Request], PendingStep]] = []
        while True:
            open_requests = [request for request in requests if request.num_launched < request.num_tokens and not request.error]
            if open_requests:
                in_flight.append((open_requests, self.runner.launch(self.plan(open_requests, chunk))))
            if not in_flight:
                return [request.output for request in requests]
            if len(in_flight) > steps_ahead or not open_requests:
                self.read(*in_flight.pop(0))

    def poison_kv_cache(self) -> None:
        """Fills the cache with NaN, as if it held the remains of something broken."""
        for pair in self.runner._kv_caches:
            for cache in pair:
                cache.fill_(torch.nan)


def make_model(config: ModelConfig, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 3) -> CausalLM:
    """The model with random weights, the same on every device."""
    on_cpu = build_model(config, device="cpu", dtype=torch.float32)
    fill_with_dummy_weights(on_cpu, seed)
    model = build_model(config, device=device, dtype=dtype)
    model.load_state_dict(on_cpu.state_dict())
    return model


@torch.inference_mode()
def naive_logits(model: CausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits at every position of one sequence, computed whole in a cache of its own."""
    num_tokens = len(token_ids)
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    config = model.config
    caches = [
        ops.make_kv_cache(1, num_tokens, config.num_kv_heads, config.head_dim, dtype, device) for _ in range(config.num_layers)
    ]
    batch = ops.AttentionBatch(
        block_table=torch.zeros(1, 1, dtype=torch.int32, device=device),
        query_start=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        kv_slots=torch.arange(num_tokens, device=device),
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )
    tokens = torch.tensor(token_ids, device=device)
    hidden = model(tokens, torch.arange(num_tokens, device=device), caches, [batch] * len(config.kv_groups))
    return model.logits(hidden)


def naive_greedy(model: CausalLM, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Greedy tokens by computing everything anew for each."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(int(naive_logits(model, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]
