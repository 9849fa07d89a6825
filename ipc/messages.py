"""Every message that crosses between a frontend and the engine, field by field.

Messages are frozen dataclasses; `codec` turns them into one msgpack array `[tag, field, ...]` each and back.
Arrays of numbers travel as raw little-endian bytes, never as lists of msgpack integers.

    data pair     frontend -> engine: Hello, Submit          engine -> frontend: Ready, Outputs, Rejected
    control pair  frontend -> engine: Heartbeat, Abort,      engine -> frontend: EngineHeartbeat, Stats
                                      StatsRequest, Goodbye

Promises: every Submit is answered by exactly one terminal event: a finish reason in Outputs, or Rejected. Aborts travel on the
control pair so that they never wait behind a long prompt; an Abort that overtakes its Submit is remembered.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

PROTOCOL_VERSION = 1
HEARTBEAT_INTERVAL_S = 1.0
"""Both sides send a heartbeat this often; whatever arrives counts as one."""
LEASE_TIMEOUT_S = 5.0
"""A side that was silent for this long is taken for dead: the engine reaps the frontend's requests, a frontend is not ready."""


class FinishReason(enum.IntEnum):
    """Why a request ended. 0 is not a reason: on the wire it says "still running"."""

    STOP = 1
    """An end-of-sequence or stop token was sampled."""
    LENGTH = 2
    """max_tokens or the context is used up."""
    ABORT = 3
    """The frontend asked for it, or its lease ran out."""
    ERROR = 4
    """The engine failed this request; the detail's `error` says how."""


class RejectReason(enum.IntEnum):
    """Why the engine refused a Submit. Nothing of a rejected request was computed."""

    INVALID = 1
    """A value is out of range; `param` names it. The client's fault (400)."""
    TOO_LONG = 2
    """The request can never fit into the context or the KV cache (400)."""
    OVERLOADED = 3
    """The queue is full (503, try again)."""
    DRAINING = 4
    """The engine is shutting down (503, try again)."""
    ABORTED = 5
    """An abort for this request had arrived first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request's tokens are drawn. Ranges are checked by the frontend and again by the engine."""

    seed: int
    """0 .. 2**63 - 1, always set: an unseeded request got a random one at the door. Noise is a function of (seed, position)."""
    max_tokens: int
    """Output tokens in all, those that came with the Submit included; >= 1, or 0 to only score the prompt."""
    temperature: float = 1.0
    """>= 0; 0, and what is too small to divide logits by, is greedy."""
    top_p: float = 1.0
    """0 < top_p <= 1."""
    top_k: int = 0
    """>= 0; 0 is off."""
    min_p: float = 0.0
    """0 .. 1: tokens less likely than min_p times the likeliest are dropped."""
    presence_penalty: float = 0.0
    """-2 .. 2, subtracted once from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """-2 .. 2, subtracted for every time the token is in the output."""
    repetition_penalty: float = 1.0
    """> 0; divides positive and multiplies negative logits of tokens in prompt or output (CTRL, arXiv 1909.05858)."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Token id -> added to its logit, -100 .. 100."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before this many output tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the request beside the model's end-of-sequence ids."""
    ignore_eos: bool = False
    """The model's end-of-sequence ids do not end the request."""
    logprobs: int | None = None
    """Top tokens to report for each output position, 0 .. 20; 0 reports the sampled token alone, None nothing."""
    prompt_logprobs: int | None = None
    """The same for each prompt position (the first has none)."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A frontend's first words, repeated every second until Ready answers."""

    protocol_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The engine can generate; what a frontend must know of the model. A new `engine_boot_id` means a new engine process."""

    protocol_version: int
    engine_boot_id: bytes
    """8 random bytes of this engine process."""
    model_dir: str
    """Where tokenizer.json, tokenizer_config.json, generation_config.json and config.json lie, readable for frontends."""
    served_model_names: tuple[str, ...]
    """Names clients may ask for; the first is the one answers carry."""
    max_model_len: int
    """Prompt and output tokens of one request together."""
    vocab_size: int
    """Width of the logits: token ids are 0 .. vocab_size - 1, whatever the tokenizer says."""
    eos_token_ids: tuple[int, ...]
    generation_defaults: dict[str, float]
    """From generation_config.json: any of temperature, top_p, top_k, min_p, repetition_penalty."""
    block_size: int
    num_blocks: int
    """KV blocks that requests can own."""
    max_num_seqs: int
    dtype: str
    device: str
    created_s: int
    """Unix time of the engine's start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """A request. `request_id` is the frontend's own, never used twice in the frontend's life."""

    request_id: int
    """1 .. 2**31 - 1."""
    token_ids: bytes
    """int32 [prompt + output so far]."""
    num_output_tokens: int
    """How many of the last ids are output already (a resumed request); the rest is the prompt."""
    sampling: Sampling
    priority: int = 0
    """Lower is sooner; equal priorities are served in the order of arrival."""
    cache_salt: str = ""
    """Requests share cached prefixes only with requests of the same salt."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop these requests; each that was running ends with FinishReason.ABORT. Unknown ids are remembered for a while."""

    request_ids: bytes
    """int32 [n]."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A frontend lives. Carries its own counters, running totals since its start, for the server's metrics."""

    http_responses: dict[str, int]
    """"route status", such as "/v1/chat/completions 200" -> responses so far."""
    prompt_tokens: dict[str, int]
    """"encoded" -> tokens of prompts that were made of text, "reused" -> those known from earlier prompts."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A frontend leaves in order; its lease ends at once."""


@dataclass(frozen=True, slots=True)
class StatsRequest:
    """Asks for a Stats with the same nonce."""

    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities of n consecutive positions, each with its k likeliest tokens.

    Of the model's own distribution (log-softmax of the raw logits), before temperature, penalties and bias.
    """

    token_ids: bytes
    """int32 [n, 1 + k]: the token itself, then the k likeliest in falling order."""
    logprobs: bytes
    """float32 [n, 1 + k]."""
    ranks: bytes
    """int32 [n]: 1 + how many tokens are likelier than the token itself."""
    num_columns: int
    """1 + k."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What one request has to say beside its tokens."""

    request_id: int
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; sent with the first output."""
    stop_token_id: int | None = None
    """The token that ended a request with FinishReason.STOP."""
    logprobs: TokenLogprobs | None = None
    """Of the tokens in this message."""
    prompt_logprobs: TokenLogprobs | None = None
    """Of prompt positions 1 .. n-1, complete, with the request's first output."""
    error: str | None = None
    """With FinishReason.ERROR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The tokens of one or more steps for all of one frontend's requests, as flat arrays over n requests.

    A frontend that sees `positions[i]` above what it has lost something: a fault; below: a duplicate, ignored.
    """

    engine_boot_id: bytes
    request_ids: bytes
    """int32 [n]."""
    positions: bytes
    """int32 [n]: the place of the request's first token here among its output tokens, from 0."""
    counts: bytes
    """int32 [n]: its tokens in this message; may be 0 with a finish reason."""
    token_ids: bytes
    """int32 [sum of counts], request by request. An end-of-sequence or stop token is included."""
    finish_reasons: bytes
    """uint8 [n]: a FinishReason, or 0 while running."""
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """The terminal event of a request that never ran."""

    request_id: int
    reason: int
    """A RejectReason."""
    message: str
    """For the client: what is wrong and which numbers would do."""
    param: str | None
    """The field to blame, in the API's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHeartbeat:
    """The engine lives; how it does."""

    engine_boot_id: bytes
    step_age_s: float
    """Seconds since a step last completed while there was work; 0 when idle."""
    num_running: int
    num_waiting: int
    kv_usage: float
    """Share of the KV blocks owned by requests, 0 .. 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One value of a metric. A histogram's `bucket_counts` are cumulative, the last one (+Inf) is its count."""

    labels: dict[str, str]
    value: float
    """Of a counter or gauge; of a histogram the sum of what was observed."""
    bucket_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A family of samples in Prometheus' sense; `name` comes without prefix and without `_total`."""

    name: str
    kind: str
    """"counter", "gauge" or "histogram"."""
    help: str
    samples: tuple[Sample, ...]
    bucket_bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets without +Inf, the same for all samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The whole server's figures at this moment."""

    nonce: int
    metrics: tuple[Metric, ...]


ToEngine = Hello | Submit | Abort | Heartbeat | Goodbye | StatsRequest
ToFrontend = Ready | Outputs | Rejected | EngineHeartbeat | Stats
