"""A minute of the collector: what does not grow in a minute does not in a month. The half hour
is `python -m benchmarks.soak`."""

from __future__ import annotations

import pytest
from benchmarks.soak import RSS_GROWTH_MB_MAX, soak

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SECONDS = 60
WARM_UP_S = 35


@pytest.mark.timeout(180)
def test_a_minute_leaves_memory_descriptors_and_threads_as_they_were() -> None:
    seen = soak(SECONDS, WARM_UP_S)
    assert seen.growth_mb <= RSS_GROWTH_MB_MAX, seen.rss_mb
    assert seen.descriptors[0] == seen.descriptors[1]
    assert seen.threads[0] == seen.threads[1]
    assert seen.lost_rows == 0
    assert seen.missed <= seen.explained, "ticks were missed while there was a core"
    assert seen.complete, seen
