"""`gputel.kernels` never falls back silently: native, or an error that says how to build it."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys
sys.modules["gputel._native.ring"] = None
import gputel.kernels
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter with our import path."""
    code = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_missing_native_module_is_an_error_with_the_command_that_builds_it() -> None:
    finished = python(BLOCKED)
    assert finished.returncode == 1
    message = finished.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: gputel's native kernels can't be loaded")
    assert "setup.py build_ext --inplace" in message
    assert "GPUTEL_KERNELS=reference" in message


@pytest.mark.parametrize(
    ("environment", "module"),
    [({}, "gputel._native"), ({"GPUTEL_KERNELS": "reference"}, "gputel._reference")],
)
def test_the_variable_chooses_the_twins(environment: dict[str, str], module: str) -> None:
    finished = python(
        "from gputel import kernels as k; "
        "print(k.Ring.__module__, k.Columns.__module__, k.encode_chunk.__module__, k.NATIVE)",
        **environment,
    )
    assert finished.returncode == 0, finished.stderr
    native = module == "gputel._native"
    kernels = [f"{module}.{name}" for name in ("ring", "columns", "codec")]
    assert finished.stdout.split() == [*kernels, str(native)]
