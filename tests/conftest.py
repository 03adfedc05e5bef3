"""What all tests share: the build of the kernels under test, hypothesis' profile, the database."""

import importlib
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import gputel._native

# `make sanitize` puts its own build of the kernels first.
if native := os.environ.get("GPUTEL_NATIVE_DIR"):
    gputel._native.__path__.insert(0, os.path.abspath(native))

# A shared machine's pauses are no failures; a failing example's seed is printed.
settings.register_profile(
    "gputel", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gputel")


@pytest.fixture(params=["_native", "_reference"])
def kernels(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Ring and Columns, of the native kernels and of their twins."""
    ring = importlib.import_module(f"gputel.{request.param}.ring")
    columns = importlib.import_module(f"gputel.{request.param}.columns")
    return ring.Ring, columns.Columns


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes", default="0", help="how long each test of random faults goes on (0: one round)"
    )


pytest_plugins = ["support.database", "support.pipeline", "support.quiet"]
