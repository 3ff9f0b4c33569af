"""The coordinator's metrics in Prometheus' format: what ``coordinator status`` shows, for monitoring systems."""

from coordinator.metrics.collector import METRICS, Declared, StatusCollector, metrics_of
from coordinator.metrics.endpoint import HOST, PATH, MetricsEndpoint, serve_metrics

__all__ = [
    "HOST",
    "METRICS",
    "PATH",
    "Declared",
    "MetricsEndpoint",
    "StatusCollector",
    "metrics_of",
    "serve_metrics",
]
