"""A page of the exporter: a template, into which a scrape puts the numbers.

HELP lines and labels change with the inventory, a GPU's health or an attribution, the numbers
ten times a second. So the text is laid out once and kept until one of its causes changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from gputel.collector.exporter.exposition import (
    UUID_LABEL,
    Family,
    Format,
    LabelProvider,
    Row,
    encode,
    head,
    label_text,
)
from gputel.collector.exporter.latest import COLUMN, XID_COLUMN, Latest
from gputel.collector.exporter.profiles import NO_ROW, Described, Profile, Slots
from gputel.collector.exporter.windows import Window
from gputel.kernels import Hole, Template
from gputel.sources.source import PeerStatuses

EOF: Final = "# EOF\n"


class Page:
    """One profile in one format. `body` is its text at a time; the same bytes object when
    nothing has changed since the last call."""

    def __init__(
        self,
        profile: Profile,
        form: Format,
        latest: Latest,
        xids: Window,
        clock_events: Window,
        providers: Sequence[LabelProvider],
        peers: Callable[[], PeerStatuses],
    ) -> None:
        self._profile = profile
        self._form = form
        self._latest = latest
        self._windows = (xids, clock_events)
        self._providers = providers
        self._peers = peers
        self._columns = np.array([COLUMN[c.metric] for c in profile.columns], np.intp)
        self._generation = -1
        self._sources: Slots | None = None
        self._layout_key: object = None
        self._tail_key: object = None
        self._version = -1
        self._template = Template([b""], [])
        self._tail = b""
        self._body = b""

    def body(self, now_ns: int) -> bytes:
        """The page; `now_ns` is monotonic."""
        latest = self._latest
        up = latest.up(now_ns)
        shown = self._shown(latest.shown(up, now_ns))
        generations = tuple(provider.generation for provider in self._providers)
        labelled = (latest.generation, generations)
        # An XID is in its row's labels too.
        xid_cells = latest.cells[:, XID_COLUMN].tobytes()
        layout_key = (labelled, shown.tobytes(), xid_cells)
        xids, events = (self._profile.counts(window, now_ns) for window in self._windows)
        peers = self._peers()
        tail_key = (labelled, up.tobytes(), xids, events, peers)
        if (layout_key, tail_key, latest.version) == (
            self._layout_key,
            self._tail_key,
            self._version,
        ):
            return self._body
        attributes: list[Mapping[str, str]] = []
        if layout_key != self._layout_key or tail_key != self._tail_key:
            attributes = self._attributes()
        if layout_key != self._layout_key:
            self._template = self._laid_out(shown, attributes)
        if tail_key != self._tail_key:
            described = Described(latest.gpus, attributes, up.tolist(), xids, events, peers)
            self._tail = self._render_tail(described).encode()
        self._layout_key, self._tail_key, self._version = layout_key, tail_key, latest.version
        self._body = self._template.fill(latest.cells, self._tail)
        return self._body

    def _shown(self, cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """bool[gpus, columns of the page]: the rows that there are. `cells` has a bit a cell."""
        if self._generation != self._latest.generation:
            self._generation = self._latest.generation
            self._sources = self._profile.sources(self._latest.gpus)
        shown: npt.NDArray[np.bool_]
        if self._sources is None:
            shown = cells.take(self._columns, axis=1)
        else:
            shown = cells[self._sources, self._columns] & (self._sources != NO_ROW)
        return shown

    def _attributes(self) -> list[Mapping[str, str]]:
        merged: list[Mapping[str, str]] = []
        for gpu in self._latest.gpus:
            attributes: dict[str, str] = {}
            for provider in self._providers:
                attributes.update(provider.attributes(gpu))
            merged.append(attributes)
        return merged

    def _laid_out(
        self, shown: npt.NDArray[np.bool_], attributes: Sequence[Mapping[str, str]]
    ) -> Template:
        """The text around the numbers, and which cell goes into which hole."""
        gpus = self._latest.gpus
        labels = [
            label_text(self._profile.labels(gpu, attributes[slot])) for slot, gpu in enumerate(gpus)
        ]
        texts: list[bytes] = []
        holes: list[Hole] = []
        end = ""
        for j, column in enumerate(self._profile.columns):
            slots = np.flatnonzero(shown[:, j]).tolist()
            if slots:
                end += head(column.name, column.type, column.help, self._form)
            cell = int(self._columns[j])
            form = self._profile.number_form(column.metric.storage)
            for slot in slots:
                text = labels[slot]
                source = slot if self._sources is None else int(self._sources[slot, j])
                if column.marks is not None:
                    marks = column.marks(int(self._latest.cells[source, cell]))
                    text = label_text(
                        self._profile.labels(gpus[slot], {**attributes[slot], **marks})
                    )
                texts.append(f"{end}{column.name}{{{text}}} ".encode())
                holes.append(Hole(source, cell, form, column.divisor))
                end = "\n"
        return Template([*texts, end.encode()], holes)

    def _render_tail(self, described: Described) -> str:
        families = self._profile.tail(described)
        for provider in self._providers:
            families += [self._adopted(family) for family in provider.families()]
        return encode(families, self._form) + (EOF if self._form is Format.OPENMETRICS else "")

    def _adopted(self, family: Family) -> Family:
        """A provider's family, in which a GPU is named as in the others of the page: they shall
        be joined."""
        name = self._profile.uuid_label
        if name == UUID_LABEL:
            return family
        rows = [
            Row({name if key == UUID_LABEL else key: text for key, text in labels.items()}, value)
            for labels, value in family.rows
        ]
        return family._replace(rows=rows)
