"""What the replicas of a server have counted, as if one process had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["Totals"]

_Key = tuple[str, tuple[tuple[str, str], ...]]  # a sample's name, and its labels

_OF_NOW = "gauge"  # the type of what is so at present; everything else only grows


class Totals:
    """Sums over replicas. What one has counted that is gone stays in the sums, so that they never fall."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Metric, ...]] = {}

    def text(self, texts: Mapping[str, bytes]) -> bytes:
        """The sums, in Prometheus' text format.

        Args:
            texts: what each replica that lives says in that format, by the replicas' names.
        """
        self._seen |= {name: tuple(text_string_to_metric_families(text.decode())) for name, text in texts.items()}
        registry = CollectorRegistry()
        registry.register(_Given(self._summed(texts)))
        return generate_latest(registry)

    def _summed(self, living: Iterable[str]) -> Iterator[Metric]:
        alive = set(living)
        families: dict[str, Metric] = {}
        values: dict[str, dict[_Key, float]] = {}
        for replica, metrics in self._seen.items():
            for metric in metrics:
                is_start = metric.name.endswith("_created")  # when counting began
                if metric.type == _OF_NOW and not is_start and replica not in alive:
                    continue
                families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                found = values.setdefault(metric.name, {})
                for sample in metric.samples:
                    key = sample.name, tuple(sample.labels.items())
                    if key not in found:
                        found[key] = sample.value
                    else:
                        found[key] = min(found[key], sample.value) if is_start else found[key] + sample.value
        for name, family in families.items():
            family.samples = [Sample(named, dict(labels), value) for (named, labels), value in values[name].items()]
            yield family


class _Given(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
