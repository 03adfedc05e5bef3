"""Whatever a client sends, its arguments are understood or QueryInvalid says why not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputel.api.params import parse_arguments
from gputel.api.routes import ROUTES
from gputel.api.times import TIME_S_MAX, parse_time
from gputel.clock import NS_PER_S, rfc3339
from gputel.errors import QueryInvalid

NOW_NS = 1_700_000_000 * NS_PER_S
NAMES = sorted({p.name for route in ROUTES for p in route.parameters})
VALUE = st.one_of(
    st.text(max_size=60),
    st.integers().map(str),
    st.from_regex(r"-?[0-9]{1,30}(ms|s|m|h|d|w)?", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9:]{5})?"),
)


@given(
    route=st.sampled_from(ROUTES),
    query=st.one_of(
        st.text(max_size=200),
        st.lists(st.tuples(st.sampled_from(NAMES), VALUE), max_size=4).map(
            lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
        ),
    ),
    id=st.text(max_size=40),
)
def test_only_query_invalid_comes_out(route: object, query: str, id: str) -> None:
    parameters = route.parameters  # type: ignore[attr-defined]
    path = {"id": id} if any(p.where == "path" for p in parameters) else {}
    try:
        arguments = parse_arguments(parameters, query, path, NOW_NS)
    except QueryInvalid:
        return
    assert set(arguments) == {p.name for p in parameters}


@given(st.integers(0, TIME_S_MAX * 1_000_000))
def test_shown_times_are_read_back(time_us: int) -> None:
    assert parse_time("t", rfc3339(time_us * 1000), NOW_NS) == time_us * 1000


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2262, 1, 1), timezones=st.timezones()),
)
def test_agrees_with_the_standard_library(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    offset = moment.utcoffset()
    if offset is None or offset.seconds % 60:
        return
    expected = int(moment.astimezone(UTC).timestamp()) * NS_PER_S
    assert parse_time("t", moment.isoformat(), NOW_NS) == expected


@pytest.mark.parametrize("text", ["", " ", "-", "1e9", "+1h", "now-", "0x10", "१", "-1y", "9" * 70])
def test_is_not_a_time(text: str) -> None:
    with pytest.raises(QueryInvalid, match="t: "):
        parse_time("t", text, NOW_NS)
