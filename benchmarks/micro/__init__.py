"""Micro-benchmarks with a stored baseline: `python -m benchmarks.micro`."""
