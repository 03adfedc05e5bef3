"""Own metrics through the OpenTelemetry SDK: Prometheus exposition always, OTLP on request.

The pipeline counts in plain integers; observable instruments read them when somebody
scrapes. Nothing here runs per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client import Histogram as PrometheusHistogram
from prometheus_client.exposition import choose_encoder

from gputel import __version__

Number = int | float
#: One value, or one value for each set of attributes.
Measurement = Number | Iterable[tuple[Number, Mapping[str, str]]]

_BOUNDS_MS: Final = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000)
LATENCY_BOUNDS_S: Final = tuple(bound / 1000 for bound in _BOUNDS_MS)


class Telemetry:
    """The instruments of one process.

    Names are Prometheus names without the suffix that the kind adds: a counter
    `gputel_ring_dropped_rows` is exposed as `gputel_ring_dropped_rows_total`.
    """

    def __init__(
        self,
        service: str,
        *,
        otlp_endpoint: str | None = None,
        attributes: Mapping[str, str] | None = None,
        histogram_bounds: Sequence[float] = LATENCY_BOUNDS_S,
    ) -> None:
        self.service = service
        # Of the whole process, which is one of ours. OpenTelemetry's reader tells none either.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._histogram_bounds = histogram_bounds
        self._is_pushed = bool(otlp_endpoint)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # CPU seconds, RSS, open files
        readers: list[MetricReader] = [
            PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        ]
        if otlp_endpoint:
            # Imported on request only: it brings `requests` and costs 10 MB.
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            exporter = OTLPMetricExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/metrics")
            readers.append(PeriodicExportingMetricReader(exporter))
        resource = Resource.create(
            {
                "service.name": f"gputel-{service}",
                "service.version": __version__,
                **(attributes or {}),
            }
        )
        self._provider = MeterProvider(
            readers,
            resource=resource,
            shutdown_on_exit=False,
            views=[
                View(
                    instrument_type=Histogram,
                    instrument_name="gputel_*_seconds",
                    aggregation=ExplicitBucketHistogramAggregation(list(histogram_bounds)),
                )
            ],
        )
        self._meter = self._provider.get_meter("gputel", __version__)
        self.observe_gauge(
            "gputel_build_info",
            "1; the version is a label",
            lambda: [(1, {"version": __version__})],
        )

    def observe_counter(self, name: str, help: str, read: Callable[[], Measurement]) -> None:
        """A monotonic count that `read` returns when somebody looks."""
        self._meter.create_observable_counter(name, [_callback(read)], description=help)

    def observe_gauge(self, name: str, help: str, read: Callable[[], Measurement]) -> None:
        """A level that `read` returns when somebody looks."""
        self._meter.create_observable_gauge(name, [_callback(read)], description=help)

    def histogram(self, name: str, help: str) -> Callable[[float], None]:
        """A distribution; call the result once per batch, commit or request, not per sample.

        `name` ends in `_seconds`, so that the bounds above apply.

        PERF(histogram): where nothing is sent by OTLP the registry has it directly. A measurement
        takes 42 us of OpenTelemetry with cold caches, as between two commits, and 9 us so.
        """
        assert name.endswith("_seconds")
        if not self._is_pushed:
            bounds = self._histogram_bounds
            return PrometheusHistogram(name, help, buckets=bounds, registry=self._registry).observe
        return self._meter.create_histogram(name, description=help).record

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as (body, content type): text format, or OpenMetrics if `accept` asks."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def close(self) -> None:
        """Send what is left to OTLP and release the instruments."""
        self._provider.shutdown()


def _callback(read: Callable[[], Measurement]) -> Callable[[CallbackOptions], list[Observation]]:
    def observe(_: CallbackOptions) -> list[Observation]:
        measured = read()
        if isinstance(measured, int | float):
            return [Observation(measured)]
        return [Observation(value, dict(attributes)) for value, attributes in measured]

    return observe
