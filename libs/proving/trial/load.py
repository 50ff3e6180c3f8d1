"""Live load: clients that call the routers while a block runs, and record requests and answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.proving.history.history import Call, HistoryWriter, read_history
from libs.proving.trial.access import OPEN, Access, Bearing
from libs.proving.trial.client import Client, Manner
from libs.proving.trial.direct import RandomStore, Routed
from libs.proving.trial.doors import McpWay, RestWay, Way
from libs.proving.trial.requests import COLLECTION, Mix, Names
from libs.proving.trial.stats import Stats
from libs.proving.trial.tasks import first_failure
from libs.rpc.channel import open_channel

HTTP_WAYS = (RestWay, McpWay)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Parameters of a load. ``old_names``: live records that exist before it; they must be among the first 50 of a
    list."""

    clients: int = 6
    calls_per_second: float = 200.0
    """Rate of all clients together; 0: as fast as calls are answered."""
    deadline_seconds: float = 1.0
    retry_seconds: float = 30.0
    made_names: int = 10
    old_names: tuple[str, ...] = ()
    fresh_share: float = 0.2
    """Share of calls on names that were never used before, or not for a while."""
    seed: int = 1
    word: str = "hot"
    """Prefix of the names that it creates: a different one for each load on a system."""
    by_http: int = 0
    """Number of clients over HTTP: alternating between REST and MCP."""
    direct: int = 0
    """Number of clients that send each call to a random process of the stores, with addresses in `Load.direct`."""
    by_xds: int = 0
    """Number of clients that follow the routers' routes, with a target in `Load.xds`."""

    def __post_init__(self) -> None:
        if self.clients < 1 or self.made_names < 1:
            raise ValueError(f"clients={self.clients} made_names={self.made_names}: both must be at least 1")
        if self.calls_per_second < 0 or not self.deadline_seconds > 0:
            raise ValueError(
                f"calls_per_second={self.calls_per_second} deadline_seconds={self.deadline_seconds}: must be positive"
            )

    @property
    def hot_names(self) -> tuple[str, ...]:
        made = tuple(f"{COLLECTION}{self.word}-{number:02}" for number in range(self.made_names))
        return (*made, *self.old_names)


@dataclass(slots=True)
class Load:
    """Calls of many clients to some routers; the history files are written to ``directory``."""

    plan: LoadPlan
    routers: Sequence[str]
    directory: Path
    http: Sequence[str] = ()
    """HTTP addresses of the routers."""
    access: Sequence[Access] = (OPEN,)
    """Access of the first client, the second one and so on, in turn."""
    direct: Sequence[str] = ()
    """Public addresses of the stores' processes."""
    xds: str = ""
    """Target of clients with xDS: "xds:///sandbox.v1.SandboxService"."""
    stats: Stats = field(default_factory=Stats)
    started: float = 0.0
    ended: float = 0.0
    """End in monotonic seconds; 0 before it."""
    _clients: list[Client] = field(default_factory=list)

    def label(self, text: str) -> None:
        """Label of all calls from now on, such as the phase."""
        for client in self._clients:
            client.history.label = text

    @property
    def calls_per_second(self) -> float:
        """Attempts per second over the whole load."""
        seconds = (self.ended or time.monotonic()) - self.started
        return self.stats.attempts / seconds if seconds > 0 else 0.0

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("client-*.jsonl"))

    def calls(self) -> list[Call]:
        """The recorded history. Raises HistoryError."""
        return read_history(self.files)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the load during the block. At its end every client finishes its calls, including retries.

        A client that fails by a defect ends the block with its error.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            ending = asyncio.Event()
            await self._make_clients(stack, ending)
            self.started = time.monotonic()
            try:
                async with first_failure() as group:
                    for client in self._clients:
                        group.create_task(client.run())
                    yield
                    ending.set()
            finally:
                self.ended = time.monotonic()

    async def _make_clients(self, stack: AsyncExitStack, ending: asyncio.Event) -> None:
        plan = self.plan
        made = plan.hot_names[: plan.made_names]
        names = Names(made, plan.old_names)
        interval = plan.clients / plan.calls_per_second if plan.calls_per_second else 0.0
        manner = Manner(plan.deadline_seconds, interval, plan.retry_seconds)
        for number in range(plan.clients):
            access = self.access[number % len(self.access)]
            channels = await self._channels(stack, number, access)
            if (place := plan.clients - 1 - number) < plan.by_http:
                kind = HTTP_WAYS[place % len(HTTP_WAYS)]
                client = await stack.enter_async_context(access.http_client())
                encrypted = access.tls is not None
                channels = [
                    kind(http, client, way, encrypted=encrypted) for http, way in zip(self.http, channels, strict=True)
                ]
            channels = [Bearing(way, access.metadata) for way in channels] if access.token else channels
            # Clients begin at different routers.
            channels = channels[number % len(channels) :] + channels[: number % len(channels)]
            history = stack.enter_context(HistoryWriter(self.directory / f"client-{number:02}.jsonl", number))
            mix = Mix(number, names, plan.fresh_share, plan.seed)
            self._clients.append(Client(channels, mix, names, manner, self.stats, history, ending))

    async def _channels(self, stack: AsyncExitStack, number: int, access: Access) -> list[Way]:
        plan = self.plan
        if number < plan.direct:
            ways = [await stack.enter_async_context(open_channel(address, access.tls)) for address in self.direct]
            return [RandomStore(ways, plan.seed + number)]
        if number < plan.direct + plan.by_xds:
            return [Routed(await stack.enter_async_context(open_channel(self.xds, access.tls)))]
        return [await stack.enter_async_context(open_channel(address, access.tls)) for address in self.routers]
