"""What a scraper asks for: the format it likes best, and whether it takes gzip (RFC 9110, 12.4)."""

from __future__ import annotations

from collections.abc import Iterator

from gputel.collector.exporter.exposition import Format

HEADER_CHARS_MAX = 4096


def negotiate_format(accept: str) -> Format:
    """OpenMetrics when it is asked for by name and liked at least as well as text.

    What Prometheus sends by default asks so. Nothing acceptable at all gets text: a scraper
    that can't read it says so itself, and better than a 406 would.
    """
    text, openmetrics = 0.0, 0.0
    for media, parameters, quality in _items(accept):
        if media == "application/openmetrics-text":
            if parameters.get("version", "1.0.0") in ("1.0.0", "0.0.1"):
                openmetrics = max(openmetrics, quality)
        elif media == "text/plain":
            # Prometheus names 1.0.0 too, the text format with quoted UTF-8 names; ours has none.
            text = max(text, quality)
    return Format.OPENMETRICS if 0 < openmetrics >= text else Format.TEXT


def takes_gzip(accept_encoding: str) -> bool:
    """True when gzip is named, or `*` is and gzip is not refused."""
    named, anything = None, 0.0
    for coding, _, quality in _items(accept_encoding):
        if coding in ("gzip", "x-gzip"):
            named = quality
        elif coding == "*":
            anything = quality
    return (anything if named is None else named) > 0


def _items(header: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(value, parameters, q) of each member of a list header; q is 1 where there is none, and
    0 where it can't be read."""
    for member in header[:HEADER_CHARS_MAX].lower().split(","):
        value, *rest = (part.strip() for part in member.split(";"))
        parameters = {}
        for part in rest:
            name, _, text = part.partition("=")
            parameters[name.strip()] = text.strip().strip('"')
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        yield value, parameters, quality if 0 <= quality <= 1 else 0.0
