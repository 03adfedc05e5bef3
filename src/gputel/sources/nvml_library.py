"""The driver's library: one file for nvidia-ml-py and for the native sampler."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from gputel.errors import SourceUnavailable


def load(path: str) -> Any:
    """pynvml with its library initialised; `path` empty: libnvidia-ml.so.1, as the system's
    loader finds it. SourceUnavailable."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise SourceUnavailable(
            f"source nvml: the module pynvml can't be imported: {error}",
            hint="install nvidia-ml-py",
        ) from error
    if path:
        _choose(nvml, path)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise SourceUnavailable(
            f"source nvml: the driver can't be reached: {error}",
            hint="install or load the NVIDIA driver, or use sim or replay:PATH",
        ) from error
    return nvml


def _choose(nvml: Any, path: str) -> None:
    """Give pynvml the library at `path`; it loads one itself only where none is set."""
    if nvml.nvmlLib is not None:
        if nvml.nvmlLib._name == path:
            return
        raise SourceUnavailable(
            f"source.library {path}: this process has loaded {nvml.nvmlLib._name} already"
        )
    try:
        nvml.nvmlLib = ctypes.CDLL(path)
    except OSError as error:
        raise SourceUnavailable(
            f"source.library {path}: {error}",
            hint="leave it empty to use the driver's library, libnvidia-ml.so.1",
        ) from error


def address(nvml: Any, symbol: str) -> int:
    """Where the library has this function; 0 when it has none."""
    function = getattr(nvml.nvmlLib, symbol, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def address_of(handle: Any) -> int:
    """What tells one device handle from another."""
    return handle if isinstance(handle, int) else ctypes.cast(handle, ctypes.c_void_p).value or 0
