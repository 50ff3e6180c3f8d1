"""The addresses of processes that serve clients, by watches of their health.

A process that drains reports so to its watchers before anything else, so its address leaves the routes first. The watch
of a dead process ends at once; one that stands still fails the watch's pings within about two seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial

import grpc
from grpc_health.v1 import health_pb2

from libs.rpc.channel import open_channel
from libs.tasks import Loop
from libs.text import visible
from libs.tls.process import ClientTls

RESOLVE_SECONDS = 5.0
"""Interval between two resolutions of a host name."""
RETRY_SECONDS = 0.1
"""Pause before a watch that ended begins again."""
MOST_ADDRESSES = 256
"""Maximum number of addresses of one group. A name that resolves to more gives the first ones."""

_WATCH = "/grpc.health.v1.Health/Watch"

log = logging.getLogger(__name__)


class Endpoints:
    """Groups of processes: by name of the group, "host:port" of each process, with commas between them. A host name may
    stand for several processes."""

    def __init__(
        self, groups: Mapping[str, Callable[[], str]], tls: ClientTls | None, changed: Callable[[], None]
    ) -> None:
        """`groups`: called when the loops run; "" for no process. `changed`: called when `serving` changes."""
        self._groups = groups
        self._tls = tls
        self._changed = changed
        self._known: dict[str, dict[str, bool]] = {name: {} for name in self._groups}
        """Whether the process serves, by group and address."""
        self.serving: Mapping[str, tuple[str, ...]] = dict.fromkeys(groups, ())
        """Serving addresses in order, by group: always IP addresses."""
        self.troubles: dict[str, str] = {}
        """Reason why an address does not serve, by address."""
        self.loops = [Loop(f"endpoints {name}", partial(self._run, name)) for name in self._groups]

    def known(self, group: str) -> tuple[str, ...]:
        """All addresses of a group, whether they serve or not."""
        return tuple(sorted(self._known.get(group, ())))

    @property
    def alerts(self) -> list[str]:
        """Groups without a process that serves."""
        return [
            f"{name}: no process serves clients: {next(iter(why), 'not asked yet')}"
            for name, known in self._known.items()
            if self._groups[name]() and not self.serving[name]
            for why in [[f"{one}: {self.troubles[one]}" for one in known if one in self.troubles]]
        ]

    async def _run(self, group: str, loop: Loop) -> None:
        """Watch the group's addresses until cancelled."""
        watches: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as owned:
            while True:
                try:
                    found = await _resolved(self._groups[group]())
                    self._known[group] = dict.fromkeys(found, False) | self._known[group]
                    loop.well()
                except OSError as error:
                    # The last known addresses stay.
                    loop.trouble = f"{self._groups[group]()}: {error.strerror or error}"
                    found = dict.fromkeys(watches, "")
                for gone in watches.keys() - found.keys():
                    watches.pop(gone).cancel()
                    self._known[group].pop(gone, None)
                    self._update()
                for address in found.keys() - watches.keys():
                    watches[address] = owned.create_task(self._watch(group, address, found[address]))
                await asyncio.sleep(RESOLVE_SECONDS)

    async def _watch(self, group: str, address: str, host: str) -> None:
        """`host`: name that the address was found by."""
        tls = self._tls
        if tls is not None and not tls.server_name:
            tls = ClientTls(tls.files, host)
        async with open_channel(address, tls) as channel:
            watch = channel.grpc.unary_stream(
                _WATCH,
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            while True:
                trouble = "its health watch ended"
                try:
                    async for answer in watch(health_pb2.HealthCheckRequest()):
                        self._note(group, address, "" if answer.status == answer.SERVING else "it does not serve")
                except grpc.aio.AioRpcError as error:
                    trouble = f"{error.code().name}: {visible(error.details() or 'no details')}"
                self._note(group, address, trouble)
                await asyncio.sleep(RETRY_SECONDS)

    def _note(self, group: str, address: str, trouble: str) -> None:
        """`trouble`: why the address does not serve; "" if it does."""
        if self._known[group].get(address) != (not trouble):
            log.info("%s %s %s", group, address, f"does not serve clients: {trouble}" if trouble else "serves clients")
        self._known[group][address] = not trouble
        if trouble:
            self.troubles[address] = trouble
        else:
            self.troubles.pop(address, None)
        self._update()

    def _update(self) -> None:
        serving = {
            name: tuple(sorted(address for address, serves in self._known.get(name, {}).items() if serves))
            for name in self.serving
        }
        if serving != self.serving:
            self.serving = serving
            self._changed()


async def _resolved(addresses: str) -> dict[str, str]:
    """Return the host by which each IP address and port was found. Raises OSError."""
    loop, found = asyncio.get_running_loop(), dict[str, str]()
    for address in filter(None, addresses.split(",")):
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        for family, _, _, _, place in await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
            ip = f"[{place[0]}]" if family == socket.AF_INET6 else place[0]
            found.setdefault(f"{ip}:{port}", host)
    return dict(sorted(found.items())[:MOST_ADDRESSES])
