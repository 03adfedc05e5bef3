"""Tests that run inside a process which has the simulated driver, and no other.

    @simulated("gpus=2,clock=manual")
    def test_count(sim):
        assert pynvml.nvmlDeviceGetCount() == 2

The body runs in a child: a process that has loaded one libnvidia-ml.so.1 gets it again for
that name, so that pytest itself must never load the simulated one.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_NATIVE = Path(__file__).parents[2] / "src" / "gputel" / "_native"
_BUILT = Path(os.environ.get("GPUTEL_NATIVE_DIR", _NATIVE)).resolve()
#: The simulated driver, of the build under test.
LIBRARY: Final = _BUILT / "simnvml" / "libnvidia-ml.so.1"
#: Seconds for one test in a child.
TIMEOUT_S: Final = 100
NS_PER_S: Final = 1_000_000_000

Test = Callable[..., None]


class Sim:
    """The functions of simnvml.h, in seconds."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        unsigned = ctypes.c_ulonglong
        for name in ("Time", "Calls", "InsideNs", "EventsDropped"):
            getattr(self.library, f"gputelSim{name}").restype = unsigned
        self.library.gputelSimSetTime.argtypes = [unsigned]
        self.library.gputelSimAdvance.argtypes = [unsigned]
        self.library.gputelSimInject.argtypes = [ctypes.c_char_p]
        self.library.gputelSimCalls.argtypes = [ctypes.c_char_p]

    def advance(self, seconds: float) -> None:
        """Move a manual clock ahead."""
        assert self.library.gputelSimAdvance(round(seconds * NS_PER_S)) == 0

    def inject(self, fault: str) -> bool:
        """Whether the fault was understood."""
        return bool(self.library.gputelSimInject(fault.encode()) == 0)

    def calls(self, function: str | None = None) -> int:
        """Since the start, or the last reset."""
        return int(self.library.gputelSimCalls(function.encode() if function else None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, f"gputelSim{name}")


def environment(config: str) -> dict[str, str]:
    """In which NVML is the simulated one."""
    path = os.pathsep.join([str(LIBRARY.parent), os.environ.get("LD_LIBRARY_PATH", "")])
    return os.environ | {
        "GPUTEL_SIM": config,
        "LD_LIBRARY_PATH": path.rstrip(os.pathsep),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }


def simulated(config: str = "clock=manual", *, start: bool = True) -> Callable[[Test], Test]:
    """Run a test in a child whose GPUTEL_SIM is `config`, after nvmlInit unless not `start`.

    The test's parameter `sim`, if it has one, is a `Sim`; others come from parametrize.
    """

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            command = [sys.executable, "-W", "error", __file__, inspect.getfile(test)]
            command += [test.__name__, str(int(start)), json.dumps(arguments)]
            ran = subprocess.run(
                command,
                env=environment(config.format(**arguments)),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"

        signature = inspect.signature(test)
        visible = [p for p in signature.parameters.values() if p.name != "sim"]
        run.__signature__ = signature.replace(parameters=visible)  # type: ignore[attr-defined]
        run.inside = test  # type: ignore[attr-defined]
        return run

    return decorate


def _child(path: str, name: str, start: str, arguments: str) -> None:
    import pynvml

    spec = importlib.util.spec_from_file_location("simulated_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = getattr(module, name).inside
    given = json.loads(arguments)
    if int(start):
        pynvml.nvmlInit()
    if "sim" in inspect.signature(test).parameters:
        given["sim"] = Sim()
    test(**given)


if __name__ == "__main__":
    _child(*sys.argv[1:])
