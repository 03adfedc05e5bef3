"""A GPU telemetry pipeline. The modules follow the path of a sample, see ARCHITECTURE.md."""

__version__ = "0.1.0"
