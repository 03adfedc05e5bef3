"""What the collector says of the driver: what its calls cost, and whether they can be made."""

from __future__ import annotations

from collections.abc import Callable

from gputel.clock import NS_PER_S
from gputel.collector.sampler import Sampler
from gputel.observe import Health, Telemetry
from gputel.sources.source import Hardware


def describe_driver(
    driver: Hardware, sampler: Callable[[], Sampler | None], telemetry: Telemetry, health: Health
) -> None:
    """Register the metrics and the check. `call` is the driver's function, so there are few."""
    counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
    counter(
        "gputel_nvml_calls",
        "Calls of the driver by the sampler",
        lambda: [(cost.calls, {"call": cost.call}) for cost in driver.call_costs()],
    )
    counter(
        "gputel_nvml_call_seconds",
        "Time inside the driver",
        lambda: [(cost.ns / NS_PER_S, {"call": cost.call}) for cost in driver.call_costs()],
    )
    gauge(
        "gputel_nvml_call_seconds_max",
        "The longest call so far",
        lambda: [(c.longest_ns / NS_PER_S, {"call": c.call}) for c in driver.call_costs()],
    )
    counter(
        "gputel_nvml_call_errors",
        "Calls and fields that failed, by what that means",
        lambda: [
            (count, {"call": cost.call, "error": error})
            for cost in driver.call_costs()
            for error, count in cost.errors.items()
        ],
    )
    counter(
        "gputel_nvml_left_out",
        "What the driver told and we did not take, by reason",
        lambda: [(count, {"reason": reason}) for reason, count in driver.counts().items()],
    )
    counter(
        "gputel_collector_takeovers",
        "Sweeps that another thread finished, for a driver call took too long",
        lambda: found.takeovers if (found := sampler()) else 0,
    )
    health.ready("driver", driver.problem)
