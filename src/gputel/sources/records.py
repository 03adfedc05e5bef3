"""What the parsers of recorded files yield, and the GPUs that they meet on the way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from gputel import limits
from gputel.catalog import Metric
from gputel.inventory import Gpu
from gputel.sources.lines import BadLine, Line, Problems
from gputel.sources.values import Number


class Record(NamedTuple):
    """The values of one line: they belong to one GPU and one moment."""

    time_ns: int
    slot: int  # index into the GPUs
    cells: tuple[tuple[Metric, Number], ...]


class Parser(Protocol):
    """A format. It is used twice on the same lines: to learn the GPUs, then for the values."""

    #: The name that `?format=` takes.
    format: str
    gpus: Gpus

    def records(self, lines: Iterable[Line], problems: Problems) -> Iterator[Record]:
        """The records of all lines that make sense; the others are counted in `problems`."""
        ...


class Gpus:
    """The GPUs of a file, in order of appearance; what is known of one grows with the lines."""

    def __init__(self) -> None:
        self._slots: dict[Hashable, int] = {}
        self._gpus: list[Gpu] = []
        self._per_node: dict[str, int] = {}

    def slot(self, key: Hashable, describe: Callable[[], Gpu]) -> int:
        """The slot of the GPU known as `key`; `describe` is asked when it is new. BadLine."""
        slot = self._slots.get(key)
        if slot is None:
            if len(self._gpus) == limits.GPUS_PER_COLLECTOR_MAX:
                raise BadLine("too many GPUs", f"over {limits.GPUS_PER_COLLECTOR_MAX}")
            gpu = describe()
            slot = self._slots[key] = len(self._gpus)
            self._gpus.append(gpu)
            self._per_node[gpu.node] = self._per_node.get(gpu.node, 0) + 1
        return slot

    def next_index(self, node: str) -> int:
        """An index for a GPU whose file names none."""
        return self._per_node.get(node, 0)

    def learn(self, slot: int, **facts: Any) -> None:
        """Fill in facts that were unknown until now; what is known stays."""
        gpu = self._gpus[slot]
        new = {name: fact for name, fact in facts.items() if not getattr(gpu, name) and fact}
        if new:
            self._gpus[slot] = replace(gpu, **new)

    def all(self) -> tuple[Gpu, ...]:
        """Every GPU so far, in slot order."""
        return tuple(self._gpus)
