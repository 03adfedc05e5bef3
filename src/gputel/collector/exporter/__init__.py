"""The node exporter: the latest values of every GPU as Prometheus text, dcgm-exporter's way."""
