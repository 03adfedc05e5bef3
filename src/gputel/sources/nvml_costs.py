"""What the driver's calls have cost, by function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gputel.kernels import Sweeper
from gputel.plan import Outcome
from gputel.sources.source import CallCost


def call_costs(sweeper: Sweeper) -> Sequence[CallCost]:
    """Over all plans."""
    calls: dict[str, tuple[int, int, int]] = {}
    errors: dict[str, Counter[str]] = {}
    for number, plan in enumerate(sweeper.plans):
        costs = zip(plan.asks, sweeper.costs(number), strict=True)
        for name, (count, ns, longest_ns, failed) in costs:
            known = calls.get(name, (0, 0, 0))
            calls[name] = known[0] + count, known[1] + ns, max(known[2], longest_ns)
            errors.setdefault(name, Counter()).update(
                {Outcome(i).name.lower(): n for i, n in enumerate(failed) if n}
            )
    return [CallCost(name, *entry, errors[name]) for name, entry in calls.items()]
