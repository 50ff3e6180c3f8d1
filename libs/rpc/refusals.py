"""The metric of refused calls: by listener and limit, never by caller, of whom there is no limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opentelemetry.metrics import Meter

from libs.telemetry.instruments import Reading, observe


def measure_refusals(meter: Meter, listeners: Mapping[str, Mapping[str, int]]) -> None:
    """Export the refusals. `listeners`: by name of the listener, refusals by reason since the start. A reason without a
    refusal has the value 0."""

    def read() -> Iterable[Reading]:
        return [
            Reading(count, {"listener": name, "limit": reason})
            for name, refused in listeners.items()
            for reason, count in refused.items()
        ]

    observe(meter, "baton.refused.calls", read)
