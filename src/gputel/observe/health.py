"""Liveness and readiness: named checks that say what is wrong in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Health:
    """The checks of one process. A check returns None when well, else what is wrong."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._live: dict[str, Callable[[], str | None]] = {}
        self._ready: dict[str, Callable[[], str | None]] = {}

    def live(self, name: str, check: Callable[[], str | None]) -> None:
        """Register a check whose failure means: restart this process."""
        self._live[name] = check

    def ready(self, name: str, check: Callable[[], str | None]) -> None:
        """Register a check whose failure means: not now, but it may pass by itself."""
        self._ready[name] = check

    def liveness(self) -> Mapping[str, str | None]:
        """What each liveness check says."""
        return {name: check() for name, check in self._live.items()}

    def readiness(self) -> Mapping[str, str | None]:
        """What each check says; readiness includes liveness."""
        return {name: check() for name, check in {**self._live, **self._ready}.items()}
