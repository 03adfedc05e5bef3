"""The exporter: takes sealed batches and events, gives pages.

    batches, events --> latest values, windows --> page (profile, format) --> bytes

All of it happens on the event loop; between an update and a page nothing else runs, so a
page shows one state of all GPUs.
"""

from __future__ import annotations

import gzip
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

from gputel.batch import Batch
from gputel.catalog import BY_NAME, SET_OF, MetricSet
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.collector.exporter.counters import (
    CLOCK_EVENTS_COUNT,
    P2P_STATUS,
    XID_ERRORS_COUNT,
    read_counters,
)
from gputel.collector.exporter.exposition import Format, LabelProvider
from gputel.collector.exporter.latest import Arrivals, Latest
from gputel.collector.exporter.profiles import (
    CLOCK_EVENTS,
    SAMPLE,
    DcgmProfile,
    GputelProfile,
    Profile,
)
from gputel.collector.exporter.renderer import Page
from gputel.collector.exporter.settings import ExporterSettings
from gputel.collector.exporter.windows import Window
from gputel.inventory import Event, EventKind, Gpu
from gputel.sources import Source
from gputel.sources.source import Peering, PeerStatuses

log = logging.getLogger(__name__)

ProfileName = Literal["dcgm", "gputel"]
PROFILES: Final[tuple[ProfileName, ...]] = get_args(ProfileName)
# Level 1 makes 7 KB of the 103 KB of 16 GPUs in 0.1 ms; level 6 would make 5.8 KB in 0.28 ms.
GZIP_LEVEL: Final = 1
_REASONS: Final = BY_NAME["clock_event_reasons"]
_REASONS_SET: Final = SET_OF[_REASONS]
_REASONS_COLUMN: Final = _REASONS_SET.column(_REASONS)
_BITS_MASK: Final = sum(CLOCK_EVENTS)
#: The bits that are set in each value of the mask.
_BITS: Final = [[bit for bit in CLOCK_EVENTS if value & bit] for value in range(_BITS_MASK + 1)]


class Exporter:
    """Pages of the latest values. InputError: the counter file can't be used.

    `bring` is called before a page is made: who has news that wait gives them to `update` and
    `observe`. `source`, which is not open yet, is told what the counter file wants beside samples.
    """

    def __init__(
        self,
        settings: ExporterSettings,
        clock: Clock = SYSTEM_CLOCK,
        bring: Callable[[], None] = lambda: None,
        source: Source | None = None,
    ) -> None:
        self._clock = clock
        self._bring = bring
        self.latest = Latest()
        self.xids = Window(settings.xid_window_ms)
        self.clock_events = Window(settings.clock_events_window_ms)
        self._providers: list[LabelProvider] = []
        self._peers: Callable[[], PeerStatuses] = dict
        counters = read_counters(settings.collectors)
        for warning in counters.warnings:
            log.warning("%s", warning)
        if any(counter.name == P2P_STATUS for counter in counters.counters):
            self._show_peers(source)
        self._profiles: Mapping[ProfileName, Profile] = {
            "dcgm": DcgmProfile(
                counters,
                settings.hostname_label,
                {
                    XID_ERRORS_COUNT: settings.xid_window_ms,
                    CLOCK_EVENTS_COUNT: settings.clock_events_window_ms,
                },
                dashes=settings.replace_blanks_in_model_name,
            ),
            "gputel": GputelProfile(),
        }
        self._pages: dict[tuple[ProfileName, Format], Page] = {}
        self._zipped: dict[tuple[ProfileName, Format], tuple[bytes, bytes]] = {}

    def add(self, provider: LabelProvider) -> None:
        """Ask `provider` for labels and families from now on; before the first page."""
        assert not self._pages, "a page has been rendered without this provider"
        self._providers.append(provider)

    def expect(self, stale_ns: Mapping[MetricSet, int]) -> None:
        """Say after how long without news the values of each set are stale."""
        self.latest.expect(stale_ns)

    def inventory(self, gpus: Sequence[Gpu]) -> None:
        """Take the GPUs as they are known now; new ones stand behind the old."""
        self.latest.inventory(gpus)

    def update(self, slot: int, batch: Batch, arrivals: Arrivals) -> None:
        """Take a batch of the GPU in `slot`."""
        self.latest.update(slot, batch, arrivals)
        if batch.metric_set is _REASONS_SET:
            self._count_clock_events(slot, batch, arrivals.now_ns)

    def observe(self, events: Sequence[Event], now_ns: int) -> None:
        """Take events; `now_ns` is monotonic."""
        for event in events:
            slot = self.latest.slot(event.gpu_uuid)
            if event.kind is EventKind.XID and slot is not None:
                self.xids.add(slot, event.code, 1, now_ns)
        self.latest.observe(events)

    def page(self, profile: ProfileName, form: Format) -> bytes:
        """The page of a profile in a format, now."""
        self._bring()
        page = self._pages.get((profile, form))
        if page is None:
            page = self._pages[profile, form] = Page(
                self._profiles[profile],
                form,
                self.latest,
                self.xids,
                self.clock_events,
                tuple(self._providers),
                self._peers,
            )
        return page.body(self._clock.monotonic_ns())

    def zipped(self, profile: ProfileName, form: Format, page: bytes) -> bytes:
        """This page, gzipped; zipped once for all who ask before something changes."""
        last = self._zipped.get((profile, form))
        if last is None or last[0] is not page:
            last = page, gzip.compress(page, GZIP_LEVEL, mtime=0)
            self._zipped[profile, form] = last
        return last[1]

    def _show_peers(self, source: Source | Peering | None) -> None:
        if isinstance(source, Peering):
            source.want_peers()
            self._peers = source.peers
        else:
            name = source.name if source else "none"
            log.warning("exporter: source %s knows no %s", name, P2P_STATUS)

    def _count_clock_events(self, slot: int, batch: Batch, now_ns: int) -> None:
        """Count every sample of the batch, not only the one that a scrape would see."""
        # PERF(exporter): a live batch has a sample or two, for which numpy's way costs four times
        # as much.
        valid = int.from_bytes(batch.valid[_REASONS_COLUMN].tobytes(), "little")
        if not valid:
            return
        reasons = batch.columns[_REASONS_COLUMN].tolist()
        values = [value for i, value in enumerate(reasons) if valid >> i & 1]
        counts = Counter(values) if len(values) > 1 else {values[0]: 1}
        for value, n in counts.items():
            self.clock_events.add(slot, SAMPLE, n, now_ns)
            for bit in _BITS[value & _BITS_MASK]:
                self.clock_events.add(slot, bit, n, now_ns)
