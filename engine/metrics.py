"""The engine's own figures, in vLLM's names and meaning, without prefix; the engine is their one owner.

Plain counters and histograms that cost a few additions per step; `EngineMetrics.export` turns them into ipc metrics when asked.
The ledger: requests_admitted = requests_finished + requests_aborted + requests_failed + those running or waiting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ipc.messages import FinishReason, Metric, RejectReason, Sample
from .frontend_totals import FrontendTotals
from .request import Request

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOKENS = tuple(float(2**exponent) for exponent in range(18))


class Histogram:
    """Counts of observations by bucket, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._bounds = np.array(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Takes the same value so many times."""
        self._counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_each(self, values: NDArray[np.float64], times: int) -> None:
        """Takes each of the values so many times."""
        buckets = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        for index in np.flatnonzero(buckets).tolist():
            self._counts[index] += times * int(buckets[index])
        self.sum += float(values.sum()) * times

    def sample(self) -> Sample:
        """Its state with cumulative bucket counts."""
        total = 0
        cumulative = tuple(total := total + count for count in self._counts)
        return Sample(labels={}, value=self.sum, bucket_counts=cumulative)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What holds at the moment of asking."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_cached_blocks: int
    num_owned_blocks: int
    block_size: int

    @property
    def num_blocks(self) -> int:
        """Of the pool."""
        return self.num_free_blocks + self.num_cached_blocks + self.num_owned_blocks


class EngineMetrics:
    """Everything counted since the engine's start."""

    def __init__(self, start_up_s: Mapping[str, float] | None = None) -> None:
        """`start_up_s`: phase of the engine's start -> how long it took."""
        self._start_up_s = {} if start_up_s is None else start_up_s
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        """Tokens looked up in the prefix cache."""
        self.num_prefix_hits = 0
        """Tokens found there."""
        self.num_admitted = 0
        self.finished: Counter[FinishReason] = Counter()
        self.rejected: Counter[RejectReason] = Counter()
        self.num_ignored_frames = 0
        self._histograms = {
            "time_to_first_token_seconds": Histogram(_SECONDS),
            "inter_token_latency_seconds": Histogram(_TOKEN_SECONDS),
            "e2e_request_latency_seconds": Histogram(_SECONDS),
            "request_queue_time_seconds": Histogram(_SECONDS),
            "request_prompt_tokens": Histogram(_TOKENS),
            "request_generation_tokens": Histogram(_TOKENS),
            "iteration_tokens_total": Histogram(_TOKENS),
        }
        self._http = FrontendTotals()
        self._prompt_tokens = FrontendTotals()

    def on_started(self, request: Request, num_hit_tokens: int | None) -> None:
        """The request left the queue for the first time; None: the prefix cache was not asked."""
        assert request.scheduled_s is not None, "the request has started"
        self._histograms["request_queue_time_seconds"].observe(request.scheduled_s - request.arrival_s)
        self.num_prompt_tokens += request.num_prompt_tokens
        if num_hit_tokens is not None:
            self.num_prefix_queries += len(request.token_ids)
            self.num_prefix_hits += num_hit_tokens

    def on_step(self, num_tokens: int, times: int = 1) -> None:
        """A step with so many tokens was planned, so many times in a row."""
        self._histograms["iteration_tokens_total"].observe(num_tokens, times)

    def on_first_token(self, request: Request, now_s: float) -> None:
        """A request's first output token."""
        self._histograms["time_to_first_token_seconds"].observe(now_s - request.arrival_s)

    def on_gap(self, gap_s: float, times: int) -> None:
        """So many tokens of a request came so long after the one before."""
        self._histograms["inter_token_latency_seconds"].observe(gap_s, times)

    def on_gaps(self, gaps_s: NDArray[np.float64], times: int) -> None:
        """So many tokens of each of n requests came so long after the one before; mostly all n gaps are the same."""
        histogram = self._histograms["inter_token_latency_seconds"]
        if gaps_s[0] == gaps_s[-1] and (gaps_s == gaps_s[0]).all():
            histogram.observe(float(gaps_s[0]), times * len(gaps_s))
        else:
            histogram.observe_each(gaps_s, times)

    def on_finished(self, request: Request, reason: FinishReason, now_s: float) -> None:
        """A request's terminal event."""
        self.finished[reason] += 1
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._histograms["e2e_request_latency_seconds"].observe(now_s - request.arrival_s)
            self._histograms["request_prompt_tokens"].observe(request.num_prompt_tokens)
            self._histograms["request_generation_tokens"].observe(len(request.token_ids) - request.num_prompt_tokens)

    def set_frontend_totals(self, identity: bytes, http_responses: Mapping[str, int], prompt_tokens: Mapping[str, int]) -> None:
        """A frontend's running totals as its heartbeat has them; they replace what it said before."""
        self._http.set(identity, http_responses)
        self._prompt_tokens.set(identity, prompt_tokens)

    def forget_frontend(self, identity: bytes) -> None:
        """Keeps a dead frontend's totals in the sum."""
        self._http.forget(identity)
        self._prompt_tokens.forget(identity)

    def export(self, gauges: Gauges) -> tuple[Metric, ...]:
        """All families at this moment."""
        return (*_gauge_metrics(gauges), *self._start_up_metrics(), *self._counter_metrics(), *self._histogram_metrics())

    def _start_up_metrics(self) -> list[Metric]:
        samples = [_sample(took_s, phase=phase) for phase, took_s in self._start_up_s.items()]
        return [_gauge("startup_seconds", "How long each phase of the engine's start took.", *samples)] if samples else []

    def _counter_metrics(self) -> list[Metric]:
        finished = self.finished
        num_done = finished[FinishReason.STOP] + finished[FinishReason.LENGTH]
        return [
            _counter("prompt_tokens", "Prompt tokens of requests that started.", self.num_prompt_tokens),
            _counter("generation_tokens", "Tokens generated.", self.num_generation_tokens),
            _counter("num_preemptions", "Times a running request lost its KV blocks to an older one.", self.num_preemptions),
            _counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", self.num_prefix_queries),
            _counter("prefix_cache_hits", "Tokens found in the prefix cache.", self.num_prefix_hits),
            _counter("requests_admitted", "Requests taken in.", self.num_admitted),
            _counter("requests_finished", "Requests that ended by themselves.", num_done),
            _counter("requests_aborted", "Requests that were aborted.", finished[FinishReason.ABORT]),
            _counter("requests_failed", "Requests that failed.", finished[FinishReason.ERROR]),
            _counter("ignored_frames", "Messages that were none of the protocol's.", self.num_ignored_frames),
            Metric(
                name="request_success",
                kind="counter",
                help="Requests by the reason they ended.",
                samples=tuple(_sample(finished[reason], finished_reason=reason.name.lower()) for reason in FinishReason),
            ),
            Metric(
                name="requests_rejected",
                kind="counter",
                help="Requests refused, by reason.",
                samples=tuple(_sample(self.rejected[reason], reason=reason.name.lower()) for reason in RejectReason),
            ),
            self._http_metric(),
            self._tokenizing_metric(),
        ]

    def _http_metric(self) -> Metric:
        parts = [(*key.rpartition(" "), count) for key, count in self._http.sums()]
        samples = tuple(_sample(count, route=route, status=status) for route, _, status, count in parts)
        return Metric(name="http_responses", kind="counter", help="HTTP responses of all frontends.", samples=samples)

    def _tokenizing_metric(self) -> Metric:
        samples = tuple(_sample(count, source=source) for source, count in self._prompt_tokens.sums())
        text = "Tokens of prompts that frontends encoded from text, or reused from earlier prompts."
        return Metric(name="tokenized_prompt_tokens", kind="counter", help=text, samples=samples)

    def _histogram_metrics(self) -> list[Metric]:
        return [
            Metric(
                name=name,
                kind="histogram",
                help=_HISTOGRAM_HELP[name],
                samples=(histogram.sample(),),
                bucket_bounds=histogram.bounds,
            )
            for name, histogram in self._histograms.items()
        ]


_HISTOGRAM_HELP = {
    "time_to_first_token_seconds": "From a request's arrival in the engine to its first token.",
    "inter_token_latency_seconds": "Between consecutive tokens of a request.",
    "e2e_request_latency_seconds": "From a request's arrival in the engine to its end.",
    "request_queue_time_seconds": "From a request's arrival in the engine to its first step.",
    "request_prompt_tokens": "Prompt tokens of finished requests.",
    "request_generation_tokens": "Output tokens of finished requests.",
    "iteration_tokens_total": "Tokens of one step, prompt and output together.",
}


def _sample(value: float, **labels: str) -> Sample:
    return Sample(labels=labels, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return Metric(name=name, kind="counter", help=text, samples=(_sample(value),))


def _gauge(name: str, text: str, *samples: Sample) -> Metric:
    return Metric(name=name, kind="gauge", help=text, samples=samples)


def _gauge_metrics(gauges: Gauges) -> list[Metric]:
    return [
        _gauge("num_requests_running", "Requests that own a slot.", _sample(gauges.num_running)),
        _gauge("num_requests_waiting", "Requests in the queue.", _sample(gauges.num_waiting)),
        _gauge(
            "kv_cache_usage_perc", "Share of KV blocks owned by requests.", _sample(gauges.num_owned_blocks / gauges.num_blocks)
        ),
        _gauge(
            "kv_blocks",
            "KV blocks by state.",
            _sample(gauges.num_free_blocks, state="free"),
            _sample(gauges.num_cached_blocks, state="cached"),
            _sample(gauges.num_owned_blocks, state="owned"),
        ),
        _gauge(
            "cache_config_info",
            "The KV cache's shape.",
            _sample(1, block_size=str(gauges.block_size), num_gpu_blocks=str(gauges.num_blocks)),
        ),
    ]
