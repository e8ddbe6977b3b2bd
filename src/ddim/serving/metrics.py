"""What the server counts and measures, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ddim.serving.pool import Pool
from ddim.serving.store import Store

__all__ = ["METRICS_TYPE", "Metrics", "OfEngines"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server.

    Args:
        more: what else is to be told, such as `OfEngines`.

    Attributes:
        requests: by model, route and status.
        seconds: of requests that were answered with pictures, by model and route.
        first_partial: seconds until the first partial picture of a stream, by model.
    """

    def __init__(self, *more: Collector) -> None:
        self._registry = CollectorRegistry()
        for each in more:
            self._registry.register(each)
        self.requests = Counter(
            "ddim_requests", "Requests that were answered.", ("model", "route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "ddim_request_seconds",
            "Seconds from a request to its answer, of those that got pictures.",
            ("model", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_partial = Histogram(
            "ddim_first_partial_seconds",
            "Seconds from a request to its first partial picture.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class OfEngines(Collector):
    """What the engines of the loaded models say, and the store, when they are asked."""

    def __init__(self, pool: Pool, store: Store) -> None:
        self._pool, self._store = pool, store

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "queued": GaugeMetricFamily("ddim_queued", "Pictures that wait to be drawn.", labels=["model"]),
            "running": GaugeMetricFamily("ddim_running", "Pictures that are being drawn.", labels=["model"]),
            "max_batch": GaugeMetricFamily("ddim_max_batch", "Pictures drawn at a time, at most.", labels=["model"]),
        }
        counters = {
            "steps": CounterMetricFamily("ddim_steps", "Steps of pictures.", labels=["model"]),
            "finished": CounterMetricFamily("ddim_images", "Pictures that were drawn.", labels=["model"]),
            "failed": CounterMetricFamily("ddim_images_failed", "Pictures that failed.", labels=["model"]),
            "cancelled": CounterMetricFamily("ddim_images_cancelled", "Pictures given up.", labels=["model"]),
            "refused": CounterMetricFamily("ddim_images_refused", "Pictures for a full queue.", labels=["model"]),
            "seconds": CounterMetricFamily("ddim_busy_seconds", "Seconds of work of the networks.", labels=["model"]),
        }
        sizes = HistogramMetricFamily("ddim_batch_size", "Pictures in a forward pass.", labels=["model"])
        for model in self._pool.loaded:
            stats = model.engine.stats()
            for name, gauge in gauges.items():
                gauge.add_metric([model.name], getattr(stats, name))
            for name, counter in counters.items():
                counter.add_metric([model.name], getattr(stats, name))
            buckets = [
                (str(float(most)), float(sum(ticks for size, ticks in stats.batches.items() if size <= most)))
                for most in _BATCHES
            ]
            total = float(sum(stats.batches.values()))
            sizes.add_metric(
                [model.name],
                [*buckets, ("+Inf", total)],
                sum_value=float(sum(size * ticks for size, ticks in stats.batches.items())),
            )
        yield from gauges.values()
        yield from counters.values()
        yield sizes
        yield GaugeMetricFamily("ddim_models_loaded", "Models in memory.", value=len(self._pool.loaded))
        yield GaugeMetricFamily("ddim_stored_bytes", "Bytes of pictures that wait at an address.", self._store.bytes)
