"""The two vocabularies of the exporter: dcgm-exporter's and gputel's own.

A profile says which columns make families, which labels name a GPU, and which families
stand behind those (`tail`). It holds no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gputel.catalog import BY_NAME, METRICS, Cadence, Kind, Metric, Storage
from gputel.collector.exporter.counters import P2P_STATUS, XID_ERRORS_COUNT, CounterSet
from gputel.collector.exporter.dcgm_fields import xid_message
from gputel.collector.exporter.exposition import Family, FamilyType, Row
from gputel.collector.exporter.windows import NONE, Counts, Window
from gputel.inventory import Gpu
from gputel.kernels import NumberForm
from gputel.sources.source import PeerStatuses

Labels = list[tuple[str, str]]
Slots = npt.NDArray[np.intp]

NO_ROW: Final = -1
#: What DCGM has of each MIG instance (its fields of the level GPU_I).
TOLD_OF_INSTANCES: Final = frozenset({
    "memory_used_bytes", "memory_free_bytes", "memory_reserved_bytes", "memory_total_bytes",
    "graphics_engine_active_ratio", "sm_active_ratio", "sm_occupancy_ratio",
    "tensor_active_ratio", "dram_active_ratio", "fp64_active_ratio", "fp32_active_ratio",
    "fp16_active_ratio",
})  # fmt: skip
#: What it has neither of an instance nor, under MIG, of the GPU.
UNTOLD_OF_INSTANCES: Final = frozenset({
    "gpu_utilization_percent", "memory_utilization_percent", "encoder_utilization_percent",
    "decoder_utilization_percent",
})  # fmt: skip

#: nvmlClocksEventReason* bit to dcgm-exporter's name for it (DCGM_CLOCKS_EVENT_REASON_*).
CLOCK_EVENTS: Final[Mapping[int, str]] = {
    0x001: "gpu_idle",
    0x002: "clocks_setting",
    0x004: "power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
}
#: nvmlGpuP2PStatus_t to dcgm-exporter's name for it.
LINK_STATUSES: Final = (
    "OK", "ChipsetNotSupported", "GPUNotSupported", "TopologyNotSupported", "DisabledByRegKey",
    "NotSupported", "Unknown",
)  # fmt: skip
#: In a window of clock events: a sample of the reasons, whatever bits it has.
SAMPLE: Final = 0
UP_HELP: Final = "1 while the GPU answers, 0 when it is lost, stalled or silent"
_INTEGER_FORMS: Final[Mapping[Storage, NumberForm]] = {Storage.I64: "q", Storage.U64: "Q"}


class Column(NamedTuple):
    """A metric as one family. `marks`: labels that depend on the value."""

    name: str
    type: FamilyType
    help: str
    metric: Metric
    divisor: int = 1
    marks: Callable[[int], Mapping[str, str]] | None = None


class Described(NamedTuple):
    """What a tail is made of, slot by slot."""

    gpus: Sequence[Gpu]
    attributes: Sequence[Mapping[str, str]]  # of the label providers
    up: Sequence[bool]
    xids: Mapping[int, Counts]
    clock_events: Mapping[int, Counts]
    peers: PeerStatuses


class Profile(Protocol):
    """A vocabulary."""

    @property
    def columns(self) -> Sequence[Column]:
        """The families that hold metrics, in the order of the page."""
        ...

    @property
    def uuid_label(self) -> str:
        """What the label with a GPU's UUID is called."""
        ...

    def labels(
        self,
        gpu: Gpu,
        attributes: Mapping[str, str],
        more: Iterable[tuple[str, str]] = (),
    ) -> Labels:
        """The labels of a row, in order; `more` are those of the row alone."""
        ...

    def sources(self, gpus: Sequence[Gpu]) -> Slots | None:
        """int[gpus, columns]: the slot whose value stands in the row of a GPU, or NO_ROW. None:
        everyone's own."""
        ...

    def number_form(self, storage: Storage) -> NumberForm:
        """How a number that is stored so is written."""
        ...

    def counts(self, window: Window, now_ns: int) -> Mapping[int, Counts]:
        """What `tail` wants to know of a window."""
        ...

    def tail(self, described: Described) -> list[Family]:
        """The families behind the columns."""
        ...


class DcgmProfile:
    """dcgm-exporter 4.8: its counter file, label order and number formats."""

    uuid_label = "UUID"

    def __init__(
        self,
        counters: CounterSet,
        hostname_label: str | None,
        windows_ms: Mapping[str, int],
        *,
        dashes: bool,
    ) -> None:
        self.columns = tuple(
            Column(c.name, c.type, c.help, c.metric, *_dcgm_format(c.metric))
            for c in counters.counters
            if c.metric is not None
        )
        self._own = tuple(c for c in counters.counters if c.metric is None)
        self._facts = counters.labels
        self._hostname_label = hostname_label
        self._windows_ms = windows_ms
        self._dashes = dashes  # for blanks in the model's name

    def labels(
        self,
        gpu: Gpu,
        attributes: Mapping[str, str],
        more: Iterable[tuple[str, str]] = (),
    ) -> Labels:
        model = gpu.model.removesuffix(f" MIG {gpu.mig_profile}")
        labels = [
            ("gpu", str(gpu.index)),
            ("UUID", gpu.mig_parent or gpu.uuid),
            ("pci_bus_id", gpu.pci_bus_id),
            ("device", gpu.device or f"nvidia{gpu.index}"),
            ("modelName", "-".join(model.split()) if self._dashes else model),
        ]
        if gpu.mig_parent:
            labels += [("GPU_I_PROFILE", gpu.mig_profile), ("GPU_I_ID", str(gpu.mig_instance))]
        if self._hostname_label is not None and gpu.node:
            labels.append((self._hostname_label, gpu.node))
        facts = ((name, str(getattr(gpu, fact))) for name, fact in self._facts.items())
        labels += sorted([*((name, text) for name, text in facts if text), *more])
        labels += sorted(attributes.items())
        return labels

    def sources(self, gpus: Sequence[Gpu]) -> Slots | None:
        """A GPU with MIG instances has their rows in place of its own: what DCGM knows of an
        instance is the instance's, what it does not know of one has no row, and all else, such
        as clocks and power, is the GPU's, repeated."""
        slots = {gpu.uuid: slot for slot, gpu in enumerate(gpus)}
        sources = np.repeat(np.arange(len(gpus))[:, np.newaxis], len(self.columns), axis=1)
        parents = {gpu.mig_parent for gpu in gpus} - {""}
        for slot, gpu in enumerate(gpus):
            if gpu.uuid in parents:
                sources[slot] = NO_ROW
            if gpu.mig_parent:
                parent = slots.get(gpu.mig_parent, NO_ROW)
                for j, column in enumerate(self.columns):
                    if column.metric.name in UNTOLD_OF_INSTANCES:
                        sources[slot, j] = NO_ROW
                    elif column.metric.name not in TOLD_OF_INSTANCES:
                        sources[slot, j] = parent
        return sources if parents else None

    def number_form(self, storage: Storage) -> NumberForm:
        return _INTEGER_FORMS.get(storage, "f")

    def counts(self, window: Window, now_ns: int) -> Mapping[int, Counts]:
        return window.counts(now_ns) if self._own else {}

    def tail(self, described: Described) -> list[Family]:
        families = []
        for own in self._own:
            if own.name == P2P_STATUS:
                families.append(Family(own.name, own.type, own.help, self._pairs(described)))
                continue
            xid = own.name == XID_ERRORS_COUNT
            rows = self._window_rows(
                described,
                described.xids if xid else described.clock_events,
                self._windows_ms[own.name],
                _xid_label if xid else _clock_event_label,
            )
            families.append(Family(own.name, own.type, own.help, rows))
        rows = [
            Row(dict(self.labels(gpu, attributes)), int(up))
            for gpu, attributes, up in zip(
                described.gpus, described.attributes, described.up, strict=True
            )
        ]
        families.append(Family("gputel_gpu_up", "gauge", UP_HELP, rows))
        return families

    def _window_rows(
        self,
        described: Described,
        counts: Mapping[int, Counts],
        window_ms: int,
        label: Callable[[int], Labels],
    ) -> list[Row]:
        window = ("window_size_in_ms", str(window_ms))
        rows = []
        for slot, gpu in enumerate(described.gpus):
            if gpu.mig_parent:
                continue  # events are the GPU's
            attributes = described.attributes[slot]
            seen = counts.get(slot, NONE)
            # As dcgm-exporter has it: a GPU of which nothing was heard gets a 0 without code.
            if not seen:
                rows.append(Row(dict(self.labels(gpu, attributes, [window])), 0))
            for code, n in seen.items():
                if more := label(code):
                    rows.append(Row(dict(self.labels(gpu, attributes, [window, *more])), n))
        return rows

    def _pairs(self, described: Described) -> list[Row]:
        """A row for each ordered pair of GPUs that answer."""
        whole = [slot for slot, gpu in enumerate(described.gpus) if not gpu.mig_parent]
        rows = []
        for slot in whole:
            gpu = described.gpus[slot]
            for other in whole:
                peer = described.gpus[other]
                status = described.peers.get((gpu.uuid, peer.uuid))
                if status is None or not (described.up[slot] and described.up[other]):
                    continue
                name = LINK_STATUSES[min(status, len(LINK_STATUSES) - 1)]
                more = [("peer_gpu", str(peer.index)), ("link_status", name)]
                rows.append(Row(dict(self.labels(gpu, described.attributes[slot], more)), status))
        return rows


class GputelProfile:
    """gputel's own names, base units of the catalog, and three labels."""

    uuid_label = "uuid"

    def __init__(self) -> None:
        self.columns = tuple(
            Column(
                metric.prometheus_name,
                "counter" if metric.kind is Kind.COUNTER else "gauge",
                metric.help,
                metric,
            )
            for metric in METRICS
            # The driver's own buffer repeats, finer in time, what the other sets show.
            if metric.cadence is not Cadence.DRAIN
        )

    def labels(
        self,
        gpu: Gpu,
        attributes: Mapping[str, str],
        more: Iterable[tuple[str, str]] = (),
    ) -> Labels:
        base = [("gpu", str(gpu.index)), ("uuid", gpu.uuid), ("node", gpu.node)]
        return [*base, *more, *sorted(attributes.items())]

    def sources(self, gpus: Sequence[Gpu]) -> Slots | None:
        """An instance is shown beside its GPU, each with what is known of it alone."""
        return None

    def number_form(self, storage: Storage) -> NumberForm:
        return _INTEGER_FORMS.get(storage, "r")

    def counts(self, window: Window, now_ns: int) -> Mapping[int, Counts]:
        return window.totals()

    def tail(self, described: Described) -> list[Family]:
        info = [Row(dict(self.labels(gpu, {}, _facts(gpu))), 1) for gpu in described.gpus]
        up = [
            Row(dict(self.labels(gpu, attributes)), int(up))
            for gpu, attributes, up in zip(
                described.gpus, described.attributes, described.up, strict=True
            )
        ]
        return [
            Family("gputel_gpu_up", "gauge", UP_HELP, up),
            Family("gputel_gpu_info", "info", "What is known of the GPU", info),
            Family(
                "gputel_gpu_xid_errors_total",
                "counter",
                "XID errors since the collector started",
                self._count_rows(described, described.xids, _xid_label),
            ),
            Family(
                "gputel_gpu_clock_event_samples_total",
                "counter",
                "Samples in which the event held the clocks down, since the collector started",
                self._count_rows(described, described.clock_events, _clock_event_label),
            ),
        ]

    def _count_rows(
        self,
        described: Described,
        counts: Mapping[int, Counts],
        label: Callable[[int], Labels],
    ) -> list[Row]:
        return [
            Row(
                dict(self.labels(described.gpus[slot], described.attributes[slot], more)),
                n,
            )
            for slot in sorted(counts)
            for code, n in counts[slot].items()
            if (more := label(code))
        ]


def _dcgm_format(metric: Metric) -> tuple[int, Callable[[int], Mapping[str, str]] | None]:
    dcgm = metric.dcgm
    assert dcgm is not None
    assert dcgm.integer == (metric.storage in (Storage.I64, Storage.U64)), metric.name
    return dcgm.divisor, _xid_marks if metric is BY_NAME["xid_last"] else None


def _xid_marks(code: int) -> dict[str, str]:
    return {"err_code": str(code), "err_msg": xid_message(code)}


def _xid_label(code: int) -> Labels:
    return [("xid", str(code))]


def _clock_event_label(code: int) -> Labels:
    return [("clock_event", CLOCK_EVENTS[code])] if code != SAMPLE else []


def _facts(gpu: Gpu) -> Labels:
    facts = {
        "device": gpu.device or f"nvidia{gpu.index}",
        "pci_bus_id": gpu.pci_bus_id,
        "model": gpu.model,
        "serial": gpu.serial,
        "brand": gpu.brand,
        "vbios_version": gpu.vbios_version,
        "driver_version": gpu.driver_version,
        "nvml_version": gpu.nvml_version,
    }
    if gpu.mig_parent:
        facts |= {
            "mig_parent": gpu.mig_parent,
            "mig_profile": gpu.mig_profile,
            "mig_instance": str(gpu.mig_instance),
        }
    return list(facts.items())
