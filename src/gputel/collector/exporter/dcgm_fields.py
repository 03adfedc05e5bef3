"""The names of DCGM's fields, with their numbers, and what gputel measures of them.

`dcgm_fields.csv` holds what a counter file may name: the fields of DCGM 4.5 (dcgm-exporter
4.8), their deprecated aliases and the `dcgm_*` names of the first exporter. Facts of
`dcgm_fields.h`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple

from gputel.catalog import DCGM_LABELS, METRICS, Metric


class Fields(NamedTuple):
    """ids: name to number. metrics, labels: number to a metric, to an attribute of `Gpu`."""

    ids: dict[str, int]
    metrics: dict[int, Metric]
    labels: dict[int, str]


@cache
def fields() -> Fields:
    """The fields; the file is read once."""
    ids: dict[str, int] = {}
    for line in data_file("dcgm_fields.csv").splitlines():
        number, _, name = line.partition(",")
        ids[name] = int(number)
    metrics = {ids[metric.dcgm.name]: metric for metric in METRICS if metric.dcgm}
    labels = {ids[name]: attribute for name, attribute in DCGM_LABELS.items()}
    return Fields(ids, metrics, labels)


def xid_message(code: int) -> str:
    """dcgm-exporter's words for an XID (NVIDIA's "XID Errors" document)."""
    messages = _xid_messages()
    return messages[code] if 0 <= code < len(messages) else "Unknown Error"


@cache
def _xid_messages() -> list[str]:
    return data_file("xid_messages.txt").splitlines()


def data_file(name: str) -> str:
    """The text of a file of this package."""
    return (resources.files(__package__) / name).read_text("utf-8")
