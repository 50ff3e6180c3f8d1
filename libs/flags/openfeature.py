"""Any OpenFeature provider as a source of flags (https://openfeature.dev/specification).

OpenFeature always answers, with the caller's default if it has no value. To distinguish a default from a value, each
flag is evaluated with both defaults: if the answers differ, the flag is unset.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason
from openfeature.provider import FeatureProvider, ProviderStatus
from openfeature.provider.no_op_provider import NoOpProvider

from libs.errors import BatonError
from libs.flags.port import FlagReading, FlagsUnavailable

Factory = Callable[[], FeatureProvider]

TARGETING_KEY = "baton"
"""Targeting key. A flag is evaluated for the router as a whole, and equally for each router; never for one record."""

PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""A factory: "package.module:name"."""

_EVENTS = tuple(ProviderEvent)
_domains = itertools.count()


class UnfitProvider(BatonError):
    """The named object does not make an OpenFeature provider."""

    code = "INVALID_ARGUMENT"
    reason = "UNFIT_PROVIDER"


def load_factory(place: str) -> Factory:
    """Load "package.module:name", a function or class without arguments. Raises UnfitProvider."""
    module_name, _, name = place.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnfitProvider(f"{place!r} is not a flag provider: give 'package.module:factory'; {error}") from error
    if not callable(factory):
        raise UnfitProvider(f"{place!r} is not a flag provider: {name} cannot be called without arguments")
    made: Factory = factory
    return made


class OpenFeatureSource:
    """A `FlagSource`. The first `evaluate` makes the provider; a provider that cannot be initialized is replaced.

    Each source has a domain of its own, which keeps several sources and an application's own providers apart.
    """

    def __init__(
        self, name: str, factory: Factory, *, prepare: Callable[[FeatureProvider], None] | None = None
    ) -> None:
        """`prepare` is called before each evaluation; it may raise FlagsUnavailable."""
        self.name = name
        self._factory = factory
        self._prepare = prepare
        self._domain = f"baton-flags-{next(_domains)}"
        self._client: OpenFeatureClient | None = None
        self._provider: FeatureProvider | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._waiting: asyncio.Future[None] | None = None
        self._changed = False
        # A provider's failures are reported as the flags' trouble; the library would log a stack trace each time.
        logging.getLogger("openfeature").setLevel(logging.CRITICAL)

    def __repr__(self) -> str:
        return f"<OpenFeatureSource {self.name}>"

    def evaluate(self, names: Sequence[str]) -> Mapping[str, FlagReading]:
        client, provider = self._opened()
        if self._prepare is not None:
            self._prepare(provider)
        status = client.get_provider_status()
        if status is not ProviderStatus.READY:
            raise FlagsUnavailable(f"{self.name}: the provider is {status.value}")
        return {name: _evaluate(client, name) for name in names}

    async def watch(self, timeout_seconds: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        with self._lock:
            changed, self._changed = self._changed, False
            self._waiting = None if changed else waiting
        if changed:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiting
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting = None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            client, self._client, self._provider = self._client, None, None
        if client is not None:
            for event in _EVENTS:
                client.remove_handler(event, self._notify)
            # The library shuts the old provider down in a thread of its own.
            api.set_provider(NoOpProvider(), self._domain)

    def _opened(self) -> tuple[OpenFeatureClient, FeatureProvider]:
        with self._lock:
            client, provider, closed = self._client, self._provider, self._closed
        if closed:
            raise FlagsUnavailable(f"{self.name}: closed")
        if client is not None and provider is not None:
            return client, provider
        try:
            made = self._factory()
            api.set_provider_and_wait(made, self._domain)
        # The provider is foreign code: after any exception, it is unavailable.
        except Exception as error:
            raise FlagsUnavailable(f"{self.name}: {type(error).__name__}: {error}") from error
        client = api.get_client(self._domain)
        with self._lock:
            self._client, self._provider = client, made
        for event in _EVENTS:
            client.add_handler(event, self._notify)
        return client, made

    def _notify(self, details: EventDetails) -> None:
        """Runs in a thread of the library."""
        with self._lock:
            waiting = self._waiting
            self._waiting = None
            if waiting is None:
                self._changed = True
                return
        try:
            waiting.get_loop().call_soon_threadsafe(_wake, waiting)
        except RuntimeError:
            # The loop has ended, and with it the waiting task.
            return


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _evaluate(client: OpenFeatureClient, name: str) -> FlagReading:
    context = EvaluationContext(targeting_key=TARGETING_KEY)

    def ask(default: bool) -> FlagEvaluationDetails[bool]:
        return client.get_boolean_details(name, default, context)

    first = ask(False)
    if first.error_code is not None:
        return _failed(first)
    if first.reason == Reason.DISABLED:
        return FlagReading(None)
    if first.value:
        return FlagReading(True)
    second = ask(True)
    if second.error_code is not None:
        return _failed(second)
    if not second.value:
        return FlagReading(False)
    # The provider returned the default both times, or the flag was just set to true: then it is true again.
    third = ask(False)
    return _failed(third) if third.error_code is not None else FlagReading(True if third.value else None)


def _failed(details: FlagEvaluationDetails[bool]) -> FlagReading:
    if details.error_code == ErrorCode.FLAG_NOT_FOUND:
        return FlagReading(None)
    return FlagReading(None, f"{details.error_code}: {details.error_message or 'no details'}")
