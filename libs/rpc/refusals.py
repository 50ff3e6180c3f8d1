"""The metric of refused calls: by listener and limit, never by caller, of whom there is no limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opentelemetry.metrics import CallbackOptions, Meter, Observation


def measure_refusals(meter: Meter, listeners: Mapping[str, Mapping[str, int]]) -> None:
    """Export the refusals. `listeners`: by name of the listener, refusals by reason since the start. A reason without a
    refusal has the value 0."""

    def read(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {"listener": name, "limit": reason})
            for name, refused in listeners.items()
            for reason, count in refused.items()
        ]

    meter.create_observable_counter(
        "baton.refused.calls",
        [read],
        unit="{call}",
        description="Calls and HTTP connections that a limit refused, by listener and limit.",
    )
