"""This router's view of the flags.

A flag that the operator has set in the control store takes precedence over the provider named in the settings. So a
kill switch works whatever the provider does.

Flags are evaluated when they change, not per call: a call reads one attribute. If a provider is unavailable, or its
value is not true or false, its last good value stays in force. Before its first answer its flags are unset, and
the next rule decides, in the end the phase.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from libs.clock import Clock
from libs.flags.port import FlagSource, FlagsUnavailable
from libs.tasks import Loop
from services.router.core.flags import FlagNames
from services.router.core.phase import Setting
from services.router.core.plan import LASTING_SECONDS, NO_FLAGS, Flags

INTERVAL_SECONDS = 0.4
"""Polling interval for a provider that does not report changes."""

ANSWER_SECONDS = 0.5
"""Timeout of a poll. A slower provider counts as unavailable, and is not asked again before it has answered."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class OperatorFlags(FlagSource, Protocol):
    """The flags of the control store. Does not block."""

    def put(self, values: Mapping[str, bool]) -> None:
        """Replace the flags."""
        ...


class LastValue(NamedTuple):
    """The last known value of a flag."""

    value: bool | None = None
    good_at: float | None = None
    """Monotonic time of the last good answer; None: never."""
    trouble: str = ""
    """The source's current error; "" if it works."""


@dataclass(frozen=True, slots=True)
class FlagView:
    """A flag as the operator sees it."""

    name: str
    value: bool | None
    source: str
    """The source of the value: control store or provider. For an unset flag, the last source in order."""
    good_seconds_ago: float | None
    """Time since the source last worked; None: never."""
    trouble: str
    """The source's current error, during which its last good value is in force; "" if it works."""


class Switches:
    """All flags of one router."""

    def __init__(
        self,
        names: FlagNames,
        operator: OperatorFlags,
        provider: FlagSource | None,
        clock: Clock,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self.names = names
        self._operator = operator
        self._provider = provider
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._set: dict[str, bool | None] = {}
        self._said = dict.fromkeys(names.all, LastValue())
        self._trouble = "not asked yet" if provider else ""
        self._asking: asyncio.Future[Mapping[str, LastValue]] | None = None
        self._current = NO_FLAGS
        self._before: bool | None = None
        self._false_since: float | None = None
        self._loop = Loop("flags", self._body, longest_pause_seconds=interval_seconds)

    @property
    def current(self) -> Flags:
        """The flags for planning calls."""
        return self._current

    @property
    def lasting(self) -> Flags:
        """The flags that move records.

        The global flag counts as false only after it has been false for LASTING_SECONDS; until then its former value
        counts.
        """
        since = self._false_since
        if since is None or self._clock.monotonic() - since >= LASTING_SECONDS:
            return self._current
        return Flags(self._before, self._current.operations)

    @property
    def loops(self) -> list[Loop]:
        """The loops for the process to run; empty without a provider."""
        return [self._loop] if self._provider is not None else []

    @property
    def trouble(self) -> str:
        """The provider's error; "" if it works or there is none."""
        return self._trouble

    def close(self) -> None:
        self._operator.close()
        if self._provider is not None:
            self._provider.close()

    def take(self, setting: Setting) -> None:
        """Apply the operator's flags from the control store at once."""
        self._operator.put(dict(setting.flags))
        self._set = {name: seen.value for name, seen in self._operator.evaluate(self.names.all).items()}
        self._settle()

    async def refresh(self) -> None:
        """Poll the provider. If it raises FlagsUnavailable, the last values stay."""
        provider = self._provider
        if provider is None:
            return
        if self._asking is None:
            self._asking = _in_thread(lambda: self._look(provider))
        done, _ = await asyncio.wait({self._asking}, timeout=ANSWER_SECONDS)
        if not done:
            self._trouble = f"{provider.name}: no answer within {ANSWER_SECONDS:g} s"
            raise FlagsUnavailable(self._trouble)
        asked, self._asking = self._asking, None
        try:
            said = dict(asked.result())
        except FlagsUnavailable as error:
            self._trouble = error.message
            raise
        _log_changes(provider.name, self._said, said)
        self._said = said
        self._trouble = ""
        self._settle()

    def views(self, setting_seconds_ago: float, setting_trouble: str) -> list[FlagView]:
        """Return all flags in the order of their names.

        `setting_seconds_ago`: time since the control store last worked.
        """
        now = self._clock.monotonic()
        views = []
        for name in self.names.all:
            said = self._said[name]
            if self._provider is None or self._set.get(name) is not None:
                seen = setting_seconds_ago if setting_seconds_ago != float("inf") else None
                views.append(FlagView(name, self._set.get(name), self._operator.name, seen, setting_trouble))
                continue
            good = None if said.good_at is None else now - said.good_at
            views.append(FlagView(name, said.value, self._provider.name, good, self._trouble or said.trouble))
        return views

    def _look(self, provider: FlagSource) -> Mapping[str, LastValue]:
        """Evaluate all flags, in a thread. A flag that cannot be evaluated keeps its last value."""
        seen = provider.evaluate(self.names.all)
        now = self._clock.monotonic()
        return {
            name: LastValue(found.value, now) if not found.trouble else self._said[name]._replace(trouble=found.trouble)
            for name, found in seen.items()
        }

    def _settle(self) -> None:
        values = {
            name: self._set[name] if self._set.get(name) is not None else self._said[name].value
            for name in self.names.all
        }
        flags = self.names.steering(values)
        if flags == self._current:
            return
        if flags.use_service_layer is not False:
            self._false_since = None
        elif self._current.use_service_layer is not False:
            self._before = self._current.use_service_layer
            self._false_since = self._clock.monotonic()
        self._current = flags

    async def _body(self, loop: Loop) -> None:
        await self.refresh()
        loop.well()
        if self._provider is not None:
            await self._provider.watch(self._interval_seconds)


def _log_changes(provider: str, before: Mapping[str, LastValue], after: Mapping[str, LastValue]) -> None:
    """Log each flag that the provider changes. The operator's flags are in the journal."""
    words = {True: "true", False: "false", None: "unset"}
    for name, known in after.items():
        old = before[name].value
        if known.value != old:
            log.info("flag %s = %s (was %s), by %s", name, words[known.value], words[old], provider)


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run the work in a daemon thread, since foreign code may never return."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(outcome)  # type: ignore[arg-type]

    def run() -> None:
        outcome, failure = None, None
        try:
            outcome = work()
        # Passed on to the awaiting caller, and raised there.
        except Exception as error:  # noqa: BLE001
            failure = error
        try:
            loop.call_soon_threadsafe(settle, outcome, failure)
        except RuntimeError:
            # The loop has ended, so no caller is waiting.
            return

    # Retrieve the exception here too, in case the caller has left.
    future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    threading.Thread(target=run, name="flags", daemon=True).start()
    return future
