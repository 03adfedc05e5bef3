"""Injected time and identities."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gputel import catalog
from gputel.batch import DTYPES, Batch
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, ManualClock
from gputel.errors import ConfigError, QueryInvalid
from gputel.inventory import synthetic_uuid


async def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(time_ns=10 * NS_PER_S)
    await clock.sleep(1.5)
    assert (clock.time_ns(), clock.monotonic_ns()) == (11_500_000_000, 1_500_000_000)
    clock.step_wall(-3)
    assert (clock.time_ns(), clock.monotonic_ns()) == (8_500_000_000, 1_500_000_000)


async def test_the_system_clock_takes_a_negative_sleep_as_none() -> None:
    before = SYSTEM_CLOCK.monotonic_ns()
    await SYSTEM_CLOCK.sleep(-5)
    assert SYSTEM_CLOCK.monotonic_ns() - before < NS_PER_S


def test_waiting_for_a_lock_takes_it_or_the_time() -> None:
    clock, lock = ManualClock(), threading.Lock()
    assert clock.acquire(lock, 5)
    assert clock.monotonic_ns() == 0
    assert not clock.acquire(lock, 5)
    assert clock.monotonic_ns() == 5 * NS_PER_S
    assert not SYSTEM_CLOCK.acquire(lock, 0.001)
    lock.release()
    assert SYSTEM_CLOCK.acquire(lock, 5)


def test_synthetic_uuids_are_stable_and_tell_gpus_apart() -> None:
    assert synthetic_uuid("node", "0") == synthetic_uuid("node", "0")
    assert len({synthetic_uuid(node, key) for node in "ab" for key in "01"}) == 4
    assert synthetic_uuid("node", "0").startswith("GPU-")


def test_errors_say_where_and_what_is_allowed() -> None:
    error = ConfigError("broker.fsync", "'never' is no policy", origin="c.yaml", allowed=["os"])
    assert str(error) == "c.yaml: broker.fsync: 'never' is no policy; allowed: os"
    assert str(QueryInvalid("limit", "must be positive")) == "limit: must be positive"


def test_a_batch_knows_its_valid_values() -> None:
    metric_set = catalog.METRIC_SETS[0]
    n = 10
    valid = np.zeros((len(metric_set.metrics), 2), np.uint8)
    valid[1] = np.packbits([1, 0, 0, 1, 0, 0, 0, 0, 0, 1], bitorder="little")
    batch = Batch(
        metric_set,
        np.arange(n, dtype=np.int64),
        np.arange(n, dtype=np.int64),
        tuple(np.zeros(n, DTYPES[code]) for code in metric_set.storages),
        valid,
    )
    assert len(batch) == 10
    assert not batch.mask(0).any()
    assert np.flatnonzero(batch.mask(1)).tolist() == [0, 3, 9]


def test_a_batch_with_columns_of_other_length_is_our_mistake() -> None:
    metric_set = catalog.METRIC_SETS[0]
    one = np.zeros(1, np.int64)
    with pytest.raises(AssertionError):
        Batch(metric_set, one, one, (), np.zeros((0, 1), np.uint8))
