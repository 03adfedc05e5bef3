"""The CSV dump of DCGM's Prometheus metrics: one value a line, named columns.

    timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,namespace,value,labels_raw

Columns are found by their header, in any order; only `timestamp`, `metric_name`, `value`
and one of `uuid` and `gpu_id` are needed. `labels_raw` holds `key="value"` pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from gputel.catalog import BY_DCGM, DCGM_LABELS, Metric
from gputel.errors import InputError
from gputel.inventory import Gpu, synthetic_uuid
from gputel.sources.lines import BadLine, Line, Problems, split_csv
from gputel.sources.records import Gpus, Record
from gputel.sources.values import exact, parse_time_ns

_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_MISSING: Final = frozenset({"", "N/A", "NaN", "nan", "[N/A]"})
#: dcgm_fields.h: DCGM_*_BLANK and the three codes after it say why there is no value.
_BLANK: Final = frozenset(
    {str(blank + code) for blank in (0x7FFFFFF0, 0x7FFFFFFFFFFFFFF0, 2**47) for code in range(4)}
    | {f"{2**47 + code}.000000" for code in range(4)}
)
_NEEDED = ("timestamp", "metric_name", "value")
_GPU_NAMES = ("gpu_id", "uuid")
_INDEX_MAX = 2**16


def is_header(fields: Sequence[str]) -> bool:
    """Is this the header of a dump?"""
    return "metric_name" in {field.lower() for field in fields}


def parse_labels(text: str) -> dict[str, str]:
    """`k="v",k2="v2"` as a dictionary; backslash escapes as in Prometheus' text format."""
    return {
        key: _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], value) if "\\" in value else value
        for key, value in _LABEL.findall(text)
    }


class DcgmCsv:
    """Parser of one dump. `node` names the host of lines that name none."""

    format = "dcgm"

    def __init__(self, *, node: str, columns: Sequence[str] = ()) -> None:
        self.gpus = Gpus()
        self._node = node
        self._given = bool(columns)
        self._width = 0
        self._at: dict[str, int] = {}
        if columns:
            self._set_header(columns)

    def _set_header(self, fields: Sequence[str]) -> None:
        self._at = {field.lower(): position for position, field in reversed([*enumerate(fields)])}
        self._width = len(fields)
        lacking = [name for name in _NEEDED if name not in self._at]
        if not any(name in self._at for name in _GPU_NAMES):
            lacking.append("uuid or gpu_id")
        if lacking:
            raise InputError(f"DCGM CSV dump without the columns {', '.join(lacking)}")

    def records(self, lines: Iterable[Line], problems: Problems) -> Iterator[Record]:
        """One record a value, in the order of the file. InputError: no usable header."""
        if not self._given:
            self._at = {}
        for line in lines:
            try:
                if line.problem is not None:
                    raise line.problem
                fields = split_csv(line.text)
                if is_header(fields):
                    if not self._given:
                        self._set_header(fields)
                    continue
                if not self._at:
                    raise BadLine("line before the header", repr(line.text[:40]))
                record = self._record(fields, problems)
            except BadLine as problem:
                problems.add(line.number, problem)
                continue
            if record is not None:
                yield record

    def _record(self, fields: list[str], problems: Problems) -> Record | None:
        if len(fields) != self._width:
            raise BadLine("wrong number of columns", f"{len(fields)} instead of {self._width}")
        name = fields[self._at["metric_name"]]
        text = fields[self._at["value"]]
        time_ns = parse_time_ns(fields[self._at["timestamp"]])
        if not name:
            raise BadLine("no metric name")
        slot = self._slot(fields)
        if name in DCGM_LABELS:
            label = parse_labels(self._field(fields, "labels_raw")).get(name, "")
            self.gpus.learn(slot, **{DCGM_LABELS[name]: label or text})
            return None
        metric = BY_DCGM.get(name)
        if metric is None:
            problems.unknown[name] += 1
            return None
        if text in _MISSING or text in _BLANK:
            problems.missing += 1
            return None
        return Record(time_ns, slot, ((metric, self._value(metric, text, slot)),))

    def _value(self, metric: Metric, text: str, slot: int) -> int | float:
        assert metric.dcgm is not None
        value = exact(metric, text, metric.dcgm.divisor)
        if metric.name == "memory_total_bytes":
            self.gpus.learn(slot, memory_total_bytes=value)
        return value

    def _field(self, fields: list[str], name: str) -> str:
        position = self._at.get(name)
        return "" if position is None else fields[position]

    def _slot(self, fields: list[str]) -> int:
        uuid = self._field(fields, "uuid")
        node = self._field(fields, "hostname")
        gpu_id = self._field(fields, "gpu_id")
        raw = self._field(fields, "labels_raw")
        instance = ""
        labels: dict[str, str] | None = None
        if raw and (not uuid or not node or 'GPU_I_ID="' in raw):
            labels = parse_labels(raw)
            uuid = uuid or labels.get("UUID", "")
            node = node or labels.get("Hostname", "") or labels.get("hostname", "")
            instance = labels.get("GPU_I_ID", "")
        node = node or self._node
        if not uuid and not gpu_id:
            raise BadLine("neither uuid nor gpu_id")
        key = (node, uuid or f"#{gpu_id}", instance)
        return self.gpus.slot(key, lambda: self._describe(fields, uuid, node, gpu_id, instance))

    def _describe(self, fields: list[str], uuid: str, node: str, gpu_id: str, instance: str) -> Gpu:
        labels = parse_labels(self._field(fields, "labels_raw"))
        facts: dict[str, Any] = {
            field: labels[name] for name, field in DCGM_LABELS.items() if labels.get(name)
        }
        device = self._field(fields, "device") or labels.get("device", "")
        if not facts.get("driver_version") and "DCGM_FI_SYSTEM_DRIVER_VERSION" in labels:
            facts["driver_version"] = labels["DCGM_FI_SYSTEM_DRIVER_VERSION"]
        uuid = uuid or synthetic_uuid(node, gpu_id)
        return Gpu(
            uuid=f"{uuid}:{instance}" if instance else uuid,
            node=node,
            index=self._index(gpu_id, device, node),
            device=device,
            pci_bus_id=labels.get("pci_bus_id", ""),
            model=self._field(fields, "modelname") or labels.get("modelName", ""),
            **facts,
        )

    def _index(self, gpu_id: str, device: str, node: str) -> int:
        for text in (gpu_id, device.removeprefix("nvidia")):
            if text.isascii() and text.isdigit() and len(text) < 6 and int(text) < _INDEX_MAX:
                return int(text)
        return self.gpus.next_index(node)
