"""`gputel query`: what the store knows of a GPU, asked of the REST API of a running pipeline.

Answers come as columns a metric and in pages; they become lines, one a time with a value a
metric, as they arrive. Where one metric has several values at one time, so many lines do.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from gputel.errors import DatabaseUnavailable, GputelError, InputError
from gputel.limits import MIB, QUERY_POINTS_DEFAULT, QUERY_POINTS_MAX

TIMEOUT_S: Final = 60.0
ANSWER_BYTES_MAX: Final = 256 * MIB


class ApiUnavailable(GputelError):
    """No REST API at the address, or something else is there."""


@dataclass(frozen=True, slots=True)
class Question:
    """Values of `metrics` of one GPU in [since, until), or aggregates of them by `step`."""

    gpu: str
    metrics: tuple[str, ...]
    since: datetime
    until: datetime
    step: str | None = None
    agg: str | None = None


class Line(NamedTuple):
    """The values of one time; None where a metric has none."""

    time: datetime
    values: list[float | int | None]


class Answer:
    """Lines in the order of time. `names` are the catalog's, known with the first page."""

    def __init__(self, url: str, question: Question) -> None:
        self._url = url
        self._question = question
        self._page = self._ask(None)
        self.names: tuple[str, ...] = tuple(one["metric"] for one in self._page["series"])

    def __iter__(self) -> Iterator[Line]:
        held: list[Line] = []
        while True:
            lines = _lines(self._page["series"], held)
            cursor = self._page["next_cursor"]
            if cursor is None:
                yield from lines
                return
            # A page may end within a time: its lines wait for the next one.
            last = lines[-1].time if lines else None
            held = [line for line in lines if line.time == last]
            yield from lines[: len(lines) - len(held)]
            self._page = self._ask(cursor)

    def _ask(self, cursor: str | None) -> dict[str, Any]:
        question = self._question
        asked = {
            "metrics": ",".join(question.metrics),
            "start_time": question.since.isoformat(),
            "end_time": question.until.isoformat(),
            "limit": str(QUERY_POINTS_MAX if question.step else QUERY_POINTS_DEFAULT),
            "step": question.step,
            "agg": question.agg,
            "cursor": cursor,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return _get(self._url, f"/api/v1/gpus/{quote(question.gpu, safe='')}/telemetry?{query}")


def _lines(series: Sequence[dict[str, Any]], held: Sequence[Line]) -> list[Line]:
    """`held` and what a page adds, by time."""
    by_time: dict[datetime, list[Line]] = {}
    for line in held:
        by_time.setdefault(line.time, []).append(line)
    for column, one in enumerate(series):
        for text, value in zip(one["time"], one["value"], strict=True):
            time = datetime.fromisoformat(text)
            lines = by_time.setdefault(time, [])
            free = next((line for line in lines if line.values[column] is None), None)
            if free is None:
                free = Line(time, [None] * len(series))
                lines.append(free)
            # JSON has no word for what is not a number.
            free.values[column] = math.nan if value is None else value
    return [line for time in sorted(by_time) for line in by_time[time]]


def _get(url: str, path: str) -> dict[str, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX + 1)
        if len(body) > ANSWER_BYTES_MAX:
            raise InputError(
                f"{url}: the answer is larger than {ANSWER_BYTES_MAX} bytes",
                hint="ask for a shorter time or fewer metrics",
            )
        answer: dict[str, Any] = json.loads(body)
    except OSError as error:
        raise ApiUnavailable(
            f"no API at {url}: {error.strerror or error}", hint="is `gputel up` running?"
        ) from None
    except (http.client.HTTPException, ValueError) as error:
        raise ApiUnavailable(f"{url} is not gputel's API: {error}") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _refusal(url, response.status, answer)
    return answer


def _refusal(url: str, status: int, problem: dict[str, Any]) -> GputelError:
    detail = str(problem.get("detail") or problem.get("title") or status)
    if status == http.client.SERVICE_UNAVAILABLE:
        return DatabaseUnavailable(detail)
    if status in (http.client.BAD_REQUEST, http.client.NOT_FOUND, http.client.REQUEST_URI_TOO_LONG):
        allowed = problem.get("allowed")
        return InputError(detail, hint=f"allowed: {', '.join(allowed)}" if allowed else "")
    return ApiUnavailable(f"{url} answered {status}: {detail}")
