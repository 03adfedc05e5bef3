"""Reads an NVML through ctypes alone, with an ABI written down here a second time.

What it returns is the truth that other people's clients are compared with: every value is a
list of numbers or texts in the order of the function's outputs, or `{"error": code}`.

    python -m support.nvml_plain --at SECONDS --truth FILE -- MODULE [ARGUMENTS]

sets the simulated driver's manual clock, writes the truth of that instant to FILE as JSON, and
then runs MODULE as `python -m` would, in the same process: MODULE is unmodified and sees the
same driver at the same instant.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import runpy
import sys
from ctypes import Structure, byref, c_char, c_int, c_longlong, c_uint, c_ulonglong, sizeof
from pathlib import Path
from typing import Any, Final, NamedTuple

NS_PER_S: Final = 1_000_000_000
TEXT_BYTES: Final = 96
PROCESSES_MAX: Final = 64

Answer = list[Any] | dict[str, int]


def _struct(*types: Any) -> type[Structure]:
    fields = [(f"f{number}", kind) for number, kind in enumerate(types)]
    return type("Record", (Structure,), {"_fields_": fields})


U, I, U64 = c_uint, c_int, c_ulonglong  # noqa: E741
PAIR, BYTES3 = _struct(U, U), _struct(U64, U64, U64)
VIOLATION = _struct(U64, U64)
MEMORY_V2 = _struct(U, U64, U64, U64, U64)
PROCESS = _struct(U, U64, U, U)
PCI = _struct(c_char * 16, U, U, U, U, U, c_char * 32)
FIELD = _struct(U, U, c_longlong, c_longlong, I, I, U64)
SAMPLE = _struct(U64, U64)
SUPPORT = _struct(U, U)


class Call(NamedTuple):
    """One reading of a device: the function, its arguments, and the types it fills."""

    symbol: str
    arguments: tuple[int, ...]
    outputs: tuple[Any, ...]
    version: int | None = None  # what the first member of the struct must say

    @property
    def name(self) -> str:
        """As it is shown: `nvmlDeviceGetClockInfo(1)`."""
        return f"{self.symbol}({', '.join(map(str, self.arguments))})"


def _plain(symbol: str, *outputs: Any) -> Call:
    return Call(f"nvmlDeviceGet{symbol}", (), outputs)


def _each(symbol: str, output: Any, *arguments: tuple[int, ...]) -> list[Call]:
    return [Call(f"nvmlDeviceGet{symbol}", each, (output,)) for each in arguments]


_CLOCKS = ((0,), (1,), (2,), (3,))  # nvmlClockType_t: graphics, SM, memory, video

CALLS: Final = (
    _plain("Index", U),
    _plain("MinorNumber", U),
    _plain("Brand", I),
    _plain("Architecture", U),
    _plain("CudaComputeCapability", I, I),
    _plain("PersistenceMode", I),
    _plain("ComputeMode", I),
    _plain("DisplayMode", I),
    _plain("DisplayActive", I),
    _plain("PerformanceState", I),
    _plain("PowerUsage", U),
    _plain("EnforcedPowerLimit", U),
    _plain("PowerManagementLimit", U),
    _plain("PowerManagementDefaultLimit", U),
    _plain("PowerManagementLimitConstraints", U, U),
    _plain("TotalEnergyConsumption", U64),
    _plain("UtilizationRates", PAIR),
    _plain("EncoderUtilization", U, U),
    _plain("DecoderUtilization", U, U),
    _plain("JpgUtilization", U, U),
    _plain("OfaUtilization", U, U),
    _plain("FanSpeed", U),
    _plain("NumFans", U),
    _plain("MemoryInfo", BYTES3),
    Call("nvmlDeviceGetMemoryInfo_v2", (), (MEMORY_V2,), sizeof(MEMORY_V2) | 2 << 24),
    _plain("BAR1MemoryInfo", BYTES3),
    _plain("CurrentClocksEventReasons", U64),
    _plain("SupportedClocksEventReasons", U64),
    _plain("EccMode", I, I),
    _plain("RemappedRows", U, U, U, U),
    _plain("RetiredPagesPendingStatus", I),
    _plain("PcieReplayCounter", U),
    _plain("CurrPcieLinkGeneration", U),
    _plain("CurrPcieLinkWidth", U),
    _plain("MaxPcieLinkGeneration", U),
    _plain("MaxPcieLinkWidth", U),
    _plain("MigMode", U, U),
    _plain("MaxMigDeviceCount", U),
    Call("nvmlGpmQueryDeviceSupport", (), (SUPPORT,), 1),
    *_each("Temperature", U, (0,)),
    *_each("TemperatureThreshold", U, (0,), (1,), (3,)),
    *_each("ClockInfo", U, *_CLOCKS),
    *_each("MaxClockInfo", U, *_CLOCKS),
    *_each("TotalEccErrors", U64, (0, 0), (1, 0), (0, 1), (1, 1)),
    *_each("ViolationStatus", VIOLATION, (0,), (1,), (2,), (3,), (4,), (5,)),
    *_each("PcieThroughput", U, (0,), (1,)),
    *_each("NvLinkState", I, (0,), (11,)),
)
TEXTS: Final = ("Name", "UUID", "Serial", "VbiosVersion")
#: nvmlFieldValue_t's id and scope: memory temperature, energy, NVLink bytes over all links,
#: power averaged and instant, PCIe bytes, NVLink CRC and replay errors, and one nobody has.
FIELDS: Final = (
    *((82, 0), (83, 0), (138, 0xFFFF_FFFF), (139, 0xFFFF_FFFF), (185, 0), (186, 0)),
    *((197, 0), (198, 0), (38, 0), (45, 0), (52, 0), (59, 0), (60_000, 0)),
)
#: nvmlSamplingType_t: power, GPU and memory utilization, SM clock.
SAMPLINGS: Final = (0, 1, 2, 5)
PROCESSES: Final = ("nvmlDeviceGetComputeRunningProcesses_v3",)


class Plain:
    """An initialised NVML; `close` it."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libnvidia-ml.so.1")
        self._check(self.library.nvmlInit_v2())

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"NVML return {code}")

    def close(self) -> None:
        """Undo one nvmlInit."""
        self._check(self.library.nvmlShutdown())

    def handles(self) -> list[Any]:
        """One handle or `{"error": code}` for each index."""
        count = c_uint()
        self._check(self.library.nvmlDeviceGetCount_v2(byref(count)))
        found: list[Any] = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            code = self.library.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(handle))
            found.append({"error": code} if code else handle)
        return found

    def device(self, handle: Any) -> dict[str, Answer]:
        """Everything that can be read of a GPU."""
        found: dict[str, Answer] = {call.name: self.call(handle, call) for call in CALLS}
        for kind in TEXTS:
            found[f"nvmlDeviceGet{kind}()"] = self.text(f"nvmlDeviceGet{kind}", handle)
        for symbol in PROCESSES:
            found[f"{symbol}()"] = self.processes(symbol, handle)
        for sampling in SAMPLINGS:
            found[f"nvmlDeviceGetSamples({sampling})"] = self.samples(handle, sampling)
        found["nvmlDeviceGetFieldValues()"] = self.fields(handle)
        found["nvmlDeviceGetPciInfo_v3()"] = self.call(
            handle, Call("nvmlDeviceGetPciInfo_v3", (), (PCI,))
        )
        return found

    def call(self, handle: Any, call: Call) -> Answer:
        """One reading."""
        outputs = [kind() for kind in call.outputs]
        if call.version is not None:
            outputs[0].f0 = call.version
        arguments = [c_int(value) for value in call.arguments]
        function = getattr(self.library, call.symbol)
        code = function(handle, *arguments, *map(byref, outputs))
        if code:
            return {"error": code}
        values = [value for output in outputs for value in _flat(output)]
        return values[1:] if call.version is not None else values

    def text(self, symbol: str, handle: Any) -> Answer:
        """A string."""
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        code = getattr(self.library, symbol)(handle, buffer, c_uint(TEXT_BYTES))
        return {"error": code} if code else [buffer.value.decode()]

    def processes(self, symbol: str, handle: Any) -> Answer:
        """pid and bytes, alternating."""
        count, entries = c_uint(PROCESSES_MAX), (PROCESS * PROCESSES_MAX)()
        code = getattr(self.library, symbol)(handle, byref(count), entries)
        if code:
            return {"error": code}
        return [value for entry in entries[: count.value] for value in (entry.f0, entry.f1)]

    def fields(self, handle: Any) -> Answer:
        """Id, return and unsigned value of each field, 0 where it has none."""
        entries = (FIELD * len(FIELDS))()
        for entry, (field, scope) in zip(entries, FIELDS, strict=True):
            entry.f0, entry.f1 = field, scope
        code = self.library.nvmlDeviceGetFieldValues(handle, c_int(len(FIELDS)), entries)
        if code:
            return {"error": code}
        found = []
        for entry in entries:
            bits = 32 if entry.f4 == 1 else 64  # nvmlValueType_t: 1 is unsigned int
            value = entry.f6 % (1 << bits)
            found += [entry.f0, entry.f5, 0 if entry.f5 else value]
        return found

    def samples(self, handle: Any, sampling: int) -> Answer:
        """The driver's buffer: microseconds and unsigned int, alternating."""
        kind, count = c_int(), c_uint()
        arguments = (handle, c_int(sampling), c_ulonglong(0), byref(kind), byref(count))
        code = self.library.nvmlDeviceGetSamples(*arguments, None)
        if not code:
            entries = (SAMPLE * count.value)()
            code = self.library.nvmlDeviceGetSamples(*arguments, entries)
        if code:
            return {"error": code}
        return [n for entry in entries[: count.value] for n in (entry.f0, entry.f1 % (1 << 32))]

    def truth(self) -> list[dict[str, Answer]]:
        """All GPUs."""
        return [
            {"handle": handle} if isinstance(handle, dict) else self.device(handle)
            for handle in self.handles()
        ]


def _flat(output: Any) -> list[Any]:
    if not isinstance(output, Structure):
        return [output.value]
    values = [getattr(output, field[0]) for field in output._fields_]
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def set_time(library: Any, seconds: float) -> None:
    """Put the simulation at an instant; it must have been started with clock=manual."""
    if library.gputelSimSetTime(c_ulonglong(int(seconds * NS_PER_S))):
        raise RuntimeError(f"driver time {seconds} s is refused")


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", type=float, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    module, *rest = arguments.command[1:]
    plain = Plain()
    set_time(plain.library, arguments.at)
    arguments.truth.write_text(json.dumps(plain.truth()))
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        plain.close()


if __name__ == "__main__":
    main()
