"""Callers who must get nothing, during the whole of a secure demo: at every listener, and at the topic of events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle
from typing import NamedTuple

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from libs.eventlog.address import open_event_log
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.port import Event
from libs.pb.baton.control.v1.control_pb2 import GetStatusRequest
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1.replication_pb2 import ExportRecordsRequest
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest
from libs.proving.trial.access import Access
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.secured import Secured
from libs.proving.trial.world import World
from libs.rpc.channel import Channel, open_channel

PAUSE_SECONDS = 0.1
DEADLINE_SECONDS = 1.0
_GET = "/sandbox.v1.SandboxService/GetSandbox"
_EXPORT = "/baton.replication.v1.ReplicationService/ExportRecords"
_EVENT_TYPE = "baton.record.v1"
_STATUS = "/baton.control.v1.ControlService/GetStatus"


class Attempt(NamedTuple):
    """A call that must be refused with this code."""

    words: str
    channel: Channel
    path: str
    request: bytes
    access: Access
    refusal: str


@dataclass(slots=True)
class Strangers:
    """`run` until cancelled. `name`: a record that exists."""

    world: World
    secured: Secured
    name: str
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals by words."""
    answered: Counter[str] = field(default_factory=Counter)
    """Calls that were answered: none should be."""
    waiting: set[str] = field(default_factory=set)
    """Attempts that have not been refused as they should be, since the process was away."""

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            attempts = await self._attempts(stack)
            self.waiting |= {attempt.words for attempt in attempts}
            for attempt in cycle(attempts):
                await self._try(attempt)
                await asyncio.sleep(PAUSE_SECONDS)

    def check(self) -> None:
        """Raises TrialFailed if a stranger was answered, or one was never refused for the right reason."""
        if self.answered:
            raise TrialFailed(f"strangers were answered: {_listed(self.answered)}")
        if self.waiting:
            raise TrialFailed(
                f"these strangers were never refused as they should be: {', '.join(sorted(self.waiting))}"
            )

    async def forge(self) -> None:
        """Write an event that is right in everything but its code: it would give the record to somebody else."""
        payload = Sandbox(name=self.name, account="mallory").SerializeToString()
        version = record_pb2.Version(revision=1_000_000)
        record = record_pb2.Record(
            key=self.name,
            version=version,
            write_version=version,
            owner=record_pb2.STORE_A,
            origin=record_pb2.STORE_A,
            live=True,
            payload=payload,
        )
        headers = HeaderWriter("A", _EVENT_TYPE).write(self.name, (0, version.revision), time.time())
        guessed = KeyRing("trial", {"trial": secrets.token_bytes(32)})
        async with open_event_log(self.world.servers.event_log) as log:
            event = Event(self.name, record.SerializeToString(), headers)
            await log.append([event, Codes(lambda: guessed, log.name).sign(event)])

    async def _try(self, attempt: Attempt) -> None:
        call = attempt.channel.multi_callable(attempt.path)
        try:
            await call(attempt.request, timeout=DEADLINE_SECONDS, metadata=grpc.aio.Metadata(*attempt.access.metadata))
        except grpc.aio.AioRpcError as error:
            self.refused[attempt.words] += 1
            if error.code().name == attempt.refusal:
                self.waiting.discard(attempt.words)
        else:
            self.answered[attempt.words] += 1

    async def _attempts(self, stack: AsyncExitStack) -> list[Attempt]:
        """Return the attempts, so ordered that each kind of caller comes to each listener."""
        guest = self.secured.client("guest", ("another-account",))
        nobody, plain = Access(guest.tls), Access()
        # A client whose issuer calls it an admin, with the certificate of an operator.
        insider = Access(self.secured.operator(), self.secured.token("insider", roles=("admin",)))
        public: Sequence[tuple[str, Access, str]] = (
            ("a caller without a token", nobody, "UNAUTHENTICATED"),
            ("a caller with a forged token", Access(guest.tls, _forged_token()), "UNAUTHENTICATED"),
            ("a caller of another account", guest, "NOT_FOUND"),
            ("a caller without TLS", plain, "UNAVAILABLE"),
        )
        inner: Sequence[tuple[str, Access, str]] = (
            ("a client without a certificate", guest, "UNAVAILABLE"),
            ("a caller without TLS", plain, "UNAVAILABLE"),
            ("a client with an operator's certificate", insider, "UNAUTHENTICATED"),
        )
        get = GetSandboxRequest(name=self.name).SerializeToString()
        export, status = ExportRecordsRequest().SerializeToString(), GetStatusRequest().SerializeToString()
        found: list[Attempt] = []
        for name, node in self.world.nodes.items():
            within = (_STATUS, status) if name.startswith("router") else (_EXPORT, export)
            for at, address, (path, request), callers in (
                (name, node.public, (_GET, get), public),
                (f"the inner listener of {name}", node.private, within, inner),
            ):
                for words, access, refusal in callers:
                    channel = await stack.enter_async_context(open_channel(address, access.tls))
                    found.append(Attempt(f"{words} at {at}", channel, path, request, access, refusal))
        return found


def _forged_token() -> str:
    """Right in everything but the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Secured.token_of(key, "mallory", ("trial",), ("admin",))


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{words} ({count} times)" for words, count in sorted(found.items()))
