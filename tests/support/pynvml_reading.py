"""Prints, as JSON, what nvidia-ml-py reads of every GPU: the readings of `nvml_plain`, by name."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable
from typing import Any

import pynvml

from support.nvml_plain import CALLS, FIELDS, PROCESSES, SAMPLINGS, TEXTS, Answer, Call


def flat(answer: Any) -> list[Any]:
    """The values of any of nvidia-ml-py's answers, in the order of the C function's outputs."""
    if isinstance(answer, ctypes.Structure):
        fields: Any = answer._fields_
        values = [getattr(answer, name) for name, *_ in fields if name != "version"]
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    return list(answer) if isinstance(answer, list | tuple) else [answer]


def ask(function: Callable[[], Any]) -> Answer:
    """Its values, or the code of its error."""
    try:
        return flat(function())
    except pynvml.NVMLError as error:
        return {"error": int(error.value)}


def read(handle: Any, call: Call) -> Answer:
    """One call through its Python function."""
    function = getattr(pynvml, re.sub(r"_v\d$", "", call.symbol))
    if call.symbol == "nvmlDeviceGetMemoryInfo_v2":
        return ask(lambda: function(handle, version=pynvml.nvmlMemory_v2))
    return ask(lambda: function(handle, *call.arguments))


def processes(handle: Any, symbol: str) -> Answer:
    """pid and bytes, alternating."""
    answer = ask(lambda: getattr(pynvml, symbol)(handle))
    if isinstance(answer, dict):
        return answer
    return [value for entry in answer for value in (entry.pid, entry.usedGpuMemory)]


def fields(handle: Any) -> Answer:
    """Id, return and unsigned value of each field, 0 where it has none."""
    answer = ask(lambda: list(pynvml.nvmlDeviceGetFieldValues(handle, list(FIELDS))))
    if isinstance(answer, dict):
        return answer
    found = []
    for item in answer:
        member = {pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal"}.get(item.valueType, "ullVal")
        value = 0 if item.nvmlReturn else getattr(item.value, member)
        found += [item.fieldId, item.nvmlReturn, value]
    return found


def samples(handle: Any, sampling: int) -> Answer:
    """The driver's buffer: microseconds and unsigned int, alternating."""
    answer = ask(lambda: list(pynvml.nvmlDeviceGetSamples(handle, sampling, 0)[1]))
    if isinstance(answer, dict):
        return answer
    return [value for one in answer for value in (one.timeStamp, one.sampleValue.uiVal)]


def device(handle: Any) -> dict[str, Answer]:
    """Everything of a GPU."""
    found = {call.name: read(handle, call) for call in CALLS}
    for kind in TEXTS:
        symbol = f"nvmlDeviceGet{kind}"
        found[f"{symbol}()"] = ask(lambda: getattr(pynvml, symbol)(handle))  # noqa: B023
    for symbol in PROCESSES:
        found[f"{symbol}()"] = processes(handle, symbol)
    for sampling in SAMPLINGS:
        found[f"nvmlDeviceGetSamples({sampling})"] = samples(handle, sampling)
    found["nvmlDeviceGetFieldValues()"] = fields(handle)
    found["nvmlDeviceGetPciInfo_v3()"] = ask(lambda: pynvml.nvmlDeviceGetPciInfo(handle))
    return found


def main() -> None:
    """All GPUs; `{"error": code}` stands for one that has no handle."""
    pynvml.nvmlInit()
    found: list[dict[str, Any]] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            found.append({"handle": {"error": int(error.value)}})
        else:
            found.append(device(handle))
    pynvml.nvmlShutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
