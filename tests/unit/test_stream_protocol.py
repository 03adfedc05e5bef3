"""The stream's messages, its board of latest values, and who may connect."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputel import limits, wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import BY_NAME, METRICS, SET_OF
from gputel.clock import NS_PER_S
from gputel.stream import protocol
from gputel.stream.app import origin_allowed
from gputel.stream.board import UNREAD_BYTES_MAX, Board, newest
from gputel.stream.protocol import MessageInvalid, Subscribe, parse_message, select
from serving import frame_bytes

T0_NS = 1_700_000_000 * NS_PER_S
POWER = BY_NAME["power_watts"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[" * 50_000, "invalid_message"),
        ("[]", "invalid_message"),
        ("{}", "invalid_message"),
        ('{"type":"shutdown"}', "invalid_message"),
        ('{"type":"subscribe"}', "invalid_message"),
        ('{"type":"subscribe","id":""}', "invalid_message"),
        ('{"type":"subscribe","id":"x","nodes":[]}', "invalid_message"),
        ('{"type":"subscribe","id":"x","colour":"red"}', "invalid_message"),
        ('{"type":"subscribe","id":"x","max_hz":0}', "invalid_message"),
        ('{"type":"subscribe","id":"x","max_hz":1e9}', "invalid_message"),
        ('{"type":"ping","id":"' + "x" * limits.WS_MESSAGE_BYTES_MAX + '"}', "too_large"),
    ],
)
def test_bad_messages_have_a_code(text: str, code: str) -> None:
    with pytest.raises(MessageInvalid) as caught:
        parse_message(text)
    assert caught.value.code == code
    assert json.loads(protocol.error(caught.value))["code"] == code


@given(st.one_of(st.text(), st.binary()))
def test_only_message_invalid_comes_out(text: str | bytes) -> None:
    with pytest.raises(MessageInvalid):
        parse_message(text)


def test_the_same_wish_is_the_same_selection() -> None:
    one = select(Subscribe("a", nodes=["n2", "n1"], metrics=["xid_last", "power_watts"]))
    two = select(
        Subscribe("b", nodes=["n1", "n2"], metrics=["DCGM_FI_DEV_POWER_USAGE", "xid_last"])
    )
    assert one == two
    assert select(Subscribe("all")).metrics == METRICS


def test_unknown_metric() -> None:
    with pytest.raises(MessageInvalid, match="'power' is not a metric") as caught:
        select(Subscribe("x", metrics=["power"]))
    assert (caught.value.code, caught.value.id) == ("unknown_metric", "x")


def test_newest_takes_the_latest_valid_sample() -> None:
    metric_set = SET_OF[POWER]
    index = metric_set.column(POWER)
    columns = [np.zeros(4, DTYPES[storage]) for storage in metric_set.storages]
    columns[index][:] = [1.0, 2.0, 3.0, 4.0]
    valid = np.zeros((len(columns), 1), np.uint8)
    valid[index, 0] = 0b0111  # the newest row has no power
    times = np.array([1000, 3000, 3000, 9000], np.int64)
    batch = Batch(metric_set, times, np.arange(4, dtype=np.int64), tuple(columns), valid)
    assert newest(batch) == [(POWER, 3000, 3.0)]


def test_the_board_keeps_the_latest_and_counts_what_it_cannot_use() -> None:
    board = Board(gpus_max=1)
    first = frame_bytes("n", [("GPU-1", {"power_watts": 100.5, "xid_last": 79})], T0_NS)
    [(state, change)] = board.apply(wire.decode_frame(first))
    assert change == {POWER: 100.5, BY_NAME["xid_last"]: 79}
    # A wall clock set back does not freeze it, and what a frame lacks stays.
    second = frame_bytes("n", [("GPU-1", {"power_watts": 90.0})], T0_NS - 3600 * NS_PER_S)
    assert board.apply(wire.decode_frame(second)) == [(state, {POWER: 90.0})]
    assert state.values == {POWER: 90.0, BY_NAME["xid_last"]: 79}
    third = frame_bytes("n", [("GPU-2", {"power_watts": 1.0})], T0_NS)
    assert board.apply(wire.decode_frame(third)) == []
    assert board.refused_gpus == 1
    broken = wire.Frame("c", 1, 1, "n", T0_NS, (wire.GpuChunks("GPU-1", (b"no chunk",)),))
    assert board.apply(broken) == []
    assert board.corrupt_chunks == 1


def test_what_nobody_watches_is_read_late_and_comes_to_the_same() -> None:
    rng = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    names = ("power_watts", "xid_last", "gpu_utilization_percent", "fan_speed_percent")
    lazy, eager = Board(), Board()
    for number in range(200):
        chosen = rng.sample(names, rng.randint(1, len(names)))
        told = {name: float(number + i) for i, name in enumerate(chosen)}
        frame = wire.decode_frame(frame_bytes("n", [("GPU-1", told)], T0_NS + number * NS_PER_S))
        if rng.random() < 0.1:
            broken = wire.GpuChunks("GPU-1", (b"no chunk", *frame.gpus[0].chunks))
            frame = replace(frame, gpus=(broken,))
        watched = rng.random() < 0.02
        changes = lazy.apply(frame, (lambda _: True) if watched else (lambda _: False))
        assert changes == (eager.apply(frame) if watched else eager.apply(frame) and [])
        assert lazy.gpus["n", "GPU-1"].unread_bytes <= UNREAD_BYTES_MAX
    state, expected = lazy.gpus["n", "GPU-1"], eager.gpus["n", "GPU-1"]
    lazy.read(state)
    assert (state.values, state.times_ns) == (expected.values, expected.times_ns)
    assert lazy.corrupt_chunks == eager.corrupt_chunks
    assert not state.unread


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "gpu-box:8081", True),
        ("http://gpu-box:8080", "gpu-box:8081", True),
        ("https://gpu-box", "gpu-box:8081", True),
        ("http://[::1]:8080", "[::1]:8081", True),
        ("https://grafana.example", "gpu-box:8081", True),
        ("http://evil.example", "gpu-box:8081", False),
        ("http://gpu-box.evil.example", "gpu-box:8081", False),
        ("null", "gpu-box:8081", False),
        ("file://gpu-box", "gpu-box:8081", False),
        ("", "", False),
        ("http://[broken", "gpu-box:8081", False),
    ],
)
def test_origins(origin: str | None, host: str, allowed: bool) -> None:
    assert origin_allowed(origin, host, ("https://grafana.example",)) is allowed
