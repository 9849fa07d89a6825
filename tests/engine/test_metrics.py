"""The engine's figures add up and mean what vLLM's do."""

from __future__ import annotations

import pytest

from penstock.engine.core import EngineCore
from penstock.engine.metrics import EngineMetrics, Gauges, Histogram
from penstock.engine.toy_config import ToyConfig
from penstock.ipc.messages import Metric
from tests.engine.toy_engine import Collected, finish, make_core, make_submit

GAUGES = Gauges(num_running=0, num_waiting=0, num_free_blocks=1, num_cached_blocks=0, num_owned_blocks=0, block_size=4)


def exported(core: EngineCore) -> dict[str, Metric]:
    return {metric.name: metric for metric in core.scheduler.metrics.export(core.scheduler.gauges)}


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    return sum(sample.value for sample in metrics[name].samples if labels.items() <= sample.labels.items())


def count(metrics: dict[str, Metric], name: str) -> int:
    (sample,) = metrics[name].samples
    assert len(sample.bucket_counts) == len(metrics[name].bucket_bounds) + 1
    return sample.bucket_counts[-1]


def test_a_run_is_accounted_for() -> None:
    core = make_core(ToyConfig(vocab_size=512), num_blocks=20)
    collected = Collected()
    for key in range(4):
        collected.expect(key)
        core.submit(key, make_submit([1] * 10, 5))
    core.step()
    running = exported(core)
    assert value(running, "num_requests_running") == 4
    assert value(running, "kv_blocks", state="owned") == 12
    assert value(running, "kv_cache_usage_perc") == pytest.approx(12 / 20)
    core.abort(3)
    finish(core, collected)
    metrics = exported(core)
    assert value(metrics, "num_requests_running") == 0
    assert value(metrics, "prompt_tokens") == 40
    assert value(metrics, "generation_tokens") == 15
    assert value(metrics, "request_success", finished_reason="length") == 3
    assert value(metrics, "request_success", finished_reason="abort") == 1
    assert value(metrics, "requests_admitted") == 4
    assert value(metrics, "requests_finished") + value(metrics, "requests_aborted") == 4
    assert value(metrics, "kv_blocks") == 20
    assert count(metrics, "time_to_first_token_seconds") == 3
    assert count(metrics, "inter_token_latency_seconds") == 12
    assert count(metrics, "e2e_request_latency_seconds") == 3
    assert count(metrics, "request_queue_time_seconds") == 4
    assert value(metrics, "request_prompt_tokens") == 30
    assert value(metrics, "request_generation_tokens") == 15
    assert value(metrics, "cache_config_info", block_size="4", num_gpu_blocks="20") == 1


def test_a_histogram_counts_up_to_and_with_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, times=2)
    histogram.observe(9.0)
    assert histogram.sample().bucket_counts == (1, 3, 4)
    assert histogram.sample().value == 13.0


def test_a_dead_frontends_answers_stay_in_the_sum() -> None:
    metrics = EngineMetrics()
    metrics.set_frontend_totals(b"a", {"/v1/models 200": 3}, {"encoded": 1})
    metrics.set_frontend_totals(b"a", {"/v1/models 200": 5, "/health 503": 1}, {"encoded": 4, "reused": 5})
    metrics.set_frontend_totals(b"b", {"/v1/models 200": 2}, {"encoded": 10})
    metrics.forget_frontend(b"a")
    metrics.forget_frontend(b"unknown")
    families = {metric.name: metric for metric in metrics.export(GAUGES)}
    told = {(sample.labels["route"], sample.labels["status"]): sample.value for sample in families["http_responses"].samples}
    assert told == {("/v1/models", "200"): 7, ("/health", "503"): 1}
    assert value(families, "tokenized_prompt_tokens", source="encoded") == 14
    assert value(families, "tokenized_prompt_tokens", source="reused") == 5
