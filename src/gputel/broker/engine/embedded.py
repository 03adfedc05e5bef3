"""The embedded engine: durable on one node, replicated nowhere.

<data dir>/lock                                   held by the broker that runs
<data dir>/topics/<topic>/topic.json              {"partitions": 4, "id": "..."}
<data dir>/topics/<topic>/<partition>/<offset>.log        segments (log_file.py)
<data dir>/topics/<topic>/<partition>/<offset>.producers  snapshots (producers.py)
<data dir>/groups/<topic>/<group>.json            {"positions": {"0": 17}}
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from gputel import limits
from gputel.broker.background import first_of
from gputel.broker.engine import NoRoom
from gputel.broker.engine.commit import Committer, Writer
from gputel.broker.engine.disk import Disk, OneCallDisk
from gputel.broker.engine.memory import Backlog, Tail
from gputel.broker.engine.mend import until_mendable
from gputel.broker.engine.partition import Partition
from gputel.broker.engine.producers import Opened
from gputel.broker.engine.recovery import Recovered, recover
from gputel.broker.engine.watching import watch
from gputel.broker.settings import BrokerSettings
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import InputError
from gputel.observe import Health, Telemetry

_T = TypeVar("_T")

READER_THREADS = 4
THROTTLE_MS = 250


class _TopicFile(msgspec.Struct, forbid_unknown_fields=True):
    partitions: int
    id: str


class _PositionsFile(msgspec.Struct, forbid_unknown_fields=True):
    positions: dict[int, int]


class Topic:
    """A set of partitions. See `TopicLog`."""

    def __init__(self, name: str, id: str, partitions: tuple[Partition, ...]) -> None:
        self.name = name
        self.id = id
        self._partitions = partitions
        self._opened = Opened(name)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return self._partitions

    async def open_producer(self, producer: str, epoch: int) -> int:
        self._opened.open(producer, epoch, self.newest_epoch(producer))
        durable = []
        for partition in self._partitions:
            mark = partition.mark(producer)
            known = mark is not None and mark.epoch == epoch and partition.is_durable(mark.offset)
            durable.append(mark.sequence if known and mark is not None else 0)
        return min(durable)

    def newest_epoch(self, producer: str) -> int:
        opened = self._opened.get(producer)
        if opened:
            return opened
        marks = [partition.mark(producer) for partition in self._partitions]
        return max((mark.epoch for mark in marks if mark is not None), default=0)


class _Opened(NamedTuple):
    name: str
    id: str
    partitions: list[tuple[Path, Recovered]]


class EmbeddedEngine:
    """Topics in a data directory. See `Engine`."""

    def __init__(
        self,
        settings: BrokerSettings,
        data_dir: Path,
        *,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk | None = None,
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._clock = clock
        self._disk = disk or OneCallDisk()
        self._observe_commit_s: Callable[[float], None] = lambda _: None
        self._topics: dict[str, Topic] = {}
        self._tail = Tail()
        self._backlog = Backlog()
        self._opening = asyncio.Lock()
        self._saving = asyncio.Lock()  # the last call's positions are those that stay
        self._lock_fd = -1
        self._readers: ThreadPoolExecutor | None = None
        self.committer: Committer | None = None

    @property
    def sharing(self) -> None:
        return None

    @property
    def topics(self) -> Mapping[str, Topic]:
        return self._topics

    def observe(self, telemetry: Telemetry, health: Health) -> None:
        self._observe_commit_s = telemetry.histogram(
            "gputel_broker_commit_seconds", "Time to write and sync one group commit"
        )
        watch(telemetry, health, self)

    async def start(self) -> None:
        """Lock the data directory and open all its topics. InputError when it can't be used."""
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="log-reader")
        try:
            opened = await self._call(self._open_all)
            self.committer = Committer(
                self._settings, self._data_dir, self._disk, self._clock, self._observe_commit_s
            )
            self.committer.start()
            for topic in opened:
                await self._add(topic)
        except OSError as error:
            await self.stop()
            raise InputError(
                f"broker: can't use {self._data_dir}: {error.strerror or error}",
                hint="check the directory's owner, mode and disk",
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self.committer is not None:
            await self._call(self.committer.stop)
            # What the thread said last is delivered before the watchers go away.
            await asyncio.sleep(0)
            self.committer = None
        if self._readers is not None:
            self._readers.shutdown()
            self._readers = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        self._topics.clear()

    async def open_topic(self, name: str) -> Topic:
        async with self._opening:
            topic = self._topics.get(name)
            if topic is not None:
                return topic
            if len(self._topics) >= limits.TOPICS_MAX:
                raise NoRoom(f"this broker holds {limits.TOPICS_MAX} topics, the most it may")
            opened = await self._call(self._create_topic, name)
            return await self._add(opened)

    async def find_topic(self, name: str) -> Topic | None:
        return self._topics.get(name)

    async def refresh(self) -> None:
        """What this broker knows is all there is."""

    async def until_failed(self) -> str:
        assert self.committer is not None
        return await first_of(self._until_mendable(), self.committer.until_ended())

    async def _until_mendable(self) -> str:
        """The other partitions are served as long as the disk still fails, so that a restart
        succeeds."""

        def partitions() -> list[Partition]:
            return [of for topic in self._topics.values() for of in topic.partitions]

        failed = await until_mendable(partitions, self._disk, self._clock)
        reasons = "; ".join(f"partition {of.name}: {of.failure}" for of in failed)
        return (
            f"{reasons}; the disk takes writes again, and only a new process may trust what the "
            "log holds"
        )

    def throttle_ms(self) -> int:
        return THROTTLE_MS if self.committer is not None and self.committer.is_full else 0

    async def room(self) -> None:
        await self._backlog.room()

    async def load_positions(self) -> Mapping[tuple[str, str], Mapping[int, int]]:
        return await self._call(self._load_positions)

    async def save_positions(self, topic: str, group: str, positions: Mapping[int, int]) -> None:
        data = msgspec.json.encode(_PositionsFile(dict(positions)))
        async with self._saving:
            await self._call(self._save_positions, topic, group, data)

    async def _call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run what blocks on a reader thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, function, *arguments)

    def _lock(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        fd = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise InputError(
                f"broker: {self._data_dir} is in use by another broker"
                + (f" (process {owner})" if owner else ""),
                hint="stop that broker, or choose another data directory",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def _open_all(self) -> list[_Opened]:
        self._lock()
        topics_dir = self._data_dir / "topics"
        topics_dir.mkdir(exist_ok=True)
        (self._data_dir / "groups").mkdir(exist_ok=True)
        self._disk.sync_dir(self._data_dir)
        return [
            self._open_topic(path.name)
            for path in sorted(topics_dir.iterdir())
            # Without its file a topic's creation was never finished, and nothing is in it.
            if (path / "topic.json").exists()
        ]

    def _create_topic(self, name: str) -> _Opened:
        directory = self._data_dir / "topics" / name
        directory.mkdir(exist_ok=True)
        self._disk.sync_dir(directory.parent)
        data = msgspec.json.encode(_TopicFile(self._settings.partitions, uuid.uuid4().hex))
        self._disk.replace(directory / "topic.json", data)
        return self._open_topic(name)

    def _open_topic(self, name: str) -> _Opened:
        directory = self._data_dir / "topics" / name
        facts = _read(directory / "topic.json", _TopicFile)
        if not 1 <= facts.partitions <= limits.PARTITIONS_MAX:
            raise InputError(f"broker: {directory}/topic.json: {facts.partitions} partitions")
        paths = [directory / str(index) for index in range(facts.partitions)]
        return _Opened(name, facts.id, [(path, recover(path, self._disk)) for path in paths])

    async def _add(self, opened: _Opened) -> Topic:
        assert self.committer is not None
        assert self._readers is not None
        partitions = []
        for index, (path, recovered) in enumerate(opened.partitions):
            partition = Partition(
                path,
                index,
                recovered,
                clock=self._clock,
                tail=self._tail,
                backlog=self._backlog,
                readers=self._readers,
                accepted=self.committer.accepted,
            )
            durable = recovered.producers.copy()
            committer = self.committer
            writer = await self._call(
                Writer, partition, durable, self._disk, committer.stage, committer.janitor
            )
            committer.add(writer)
            partitions.append(partition)
        topic = Topic(opened.name, opened.id, tuple(partitions))
        self._topics[opened.name] = topic
        return topic

    def _load_positions(self) -> dict[tuple[str, str], dict[int, int]]:
        loaded: dict[tuple[str, str], dict[int, int]] = {}
        for path in sorted((self._data_dir / "groups").glob("*/*.json")):
            loaded[path.parent.name, path.stem] = _read(path, _PositionsFile).positions
        return loaded

    def _save_positions(self, topic: str, group: str, data: bytes) -> None:
        directory = self._data_dir / "groups" / topic
        if not directory.exists():
            directory.mkdir()
            self._disk.sync_dir(directory.parent)
        self._disk.replace(directory / f"{group}.json", data)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"broker: {path} can't be read: {error}") from None
