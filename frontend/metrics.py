"""GET /metrics: the whole server's figures, fetched from the engine at each scrape, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ..ipc import messages
from .service import Service

PREFIX = "penstock:"


def metrics_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["Server"])

    @router.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> Response:
        stats = await service.client.fetch_stats()
        return Response(render(stats), media_type=CONTENT_TYPE_LATEST)

    return router


def render(stats: messages.Stats) -> bytes:
    """The figures as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(stats.metrics))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, metrics: Iterable[messages.Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return map(_family, self._metrics)


def _family(metric: messages.Metric) -> Metric:
    name = PREFIX + metric.name
    label_names = sorted({label for sample in metric.samples for label in sample.labels})
    values = [([sample.labels.get(label, "") for label in label_names], sample) for sample in metric.samples]
    if metric.kind == "histogram":
        bounds = [*(f"{bound:g}" for bound in metric.bucket_bounds), "+Inf"]
        histogram = HistogramMetricFamily(name, metric.help, labels=label_names)
        for labels, sample in values:
            histogram.add_metric(labels, list(zip(bounds, sample.bucket_counts, strict=True)), sample.value)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.help, labels=label_names)
    for labels, sample in values:
        family.add_metric(labels, sample.value)
    return family
