"""Benchmarks: `python -m benchmarks.MODULE [--json]`. Each checks the result it times."""
