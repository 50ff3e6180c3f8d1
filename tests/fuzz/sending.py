"""Sends cases to a system's listeners and judges the answers: a fault of the server is never an answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import h11

from libs.contract.descriptors import Contract
from libs.pb.baton.control.v1 import control_pb2, events_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2
from libs.rpc import metadata
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import reason_of
from tests.fuzz.case import GRPC, RAW, Case
from tests.http_client import ask

CALL_SECONDS = 30.0
"""Deadline of a case without one of its own. A listener's own limits of a slow request end before it."""
STREAM_SECONDS = 0.2
"""How long the answers of a stream are read."""

_NEVER = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_NEVER_NUMBERS = frozenset(code.value[0] for code in _NEVER)
_NAME = re.compile(rb"sandboxes/([a-z0-9][a-z0-9-]{0,62})")
_CONTRACT = Contract.of(sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"])
_UNKNOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Codes of writes that may have had their effect."""
_WRITES = frozenset(method.path for method in _CONTRACT.methods.values() if not method.is_read)
_CONTROL = "/baton.control.v1.ControlService/"
_DESTRUCTIVE = frozenset({_CONTROL + name for name in ("ResolveConflict", "RestartEvents")})
"""Orders that destroy something. No case names a thing that exists, or confirms one, so each must be refused."""
_DOCUMENTED = {
    501: ("UNIMPLEMENTED", "UNSUPPORTED_TRANSFER_ENCODING", "UNSUPPORTED_COMPRESSION"),
    503: ("UNAVAILABLE",),
    504: ("DEADLINE_EXCEEDED",),
}
"""HTTP codes from 500 on that a listener may answer with, and a word of their bodies."""


@dataclass(slots=True)
class Sent:
    """Counts of the answers, and the names of records that successful or unknown calls may have made."""

    answers: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    checked: set[str] = field(default_factory=set)
    """Names in the answers of creates that only checked the request."""

    @property
    def only_checked(self) -> set[str]:
        """Names of records that no call can have made, although a create of each was answered OK."""
        return self.checked - self.names


@dataclass(frozen=True, slots=True)
class Address:
    """A listener. ``token``: the token that it requires, or ""."""

    address: str
    token: str = ""


class Sender:
    """Sends cases. Use `open_sender`."""

    def __init__(self, addresses: Mapping[str, Address], channels: Mapping[str, Channel]) -> None:
        self._addresses = addresses
        self._channels = channels
        self.sent = Sent()

    async def send(self, case: Case) -> str:
        """The fault of the answer, in a sentence; "" if a caller may get such an answer."""
        try:
            async with asyncio.timeout(2 * CALL_SECONDS):
                if case.kind == GRPC:
                    return await self._call(case)
                return await self._request(case)
        except TimeoutError:
            return "the listener hangs"

    async def _call(self, case: Case) -> str:
        channel: Any = self._channels[case.listener].grpc
        found = _sendable(case.headers)
        if token := self._addresses[case.listener].token:
            found += ((metadata.TOKEN, token),)
        options: dict[str, Any] = {"timeout": case.seconds or CALL_SECONDS, "metadata": grpc.aio.Metadata(*found)}
        answers: list[bytes] = []
        code, words = grpc.StatusCode.OK, ""
        try:
            if case.target.endswith("ServerReflectionInfo"):
                await _read(channel.stream_stream(case.target)(iter([case.body]), **options), answers)
            elif _streams(case.target):
                await _read(channel.unary_stream(case.target)(case.body, **options), answers)
            else:
                answers.append(await channel.unary_unary(case.target)(case.body, **options))
        except grpc.aio.AioRpcError as error:
            code, words = error.code(), f"{reason_of(error)[0]} {error.details()}"
        self.sent.answers[f"{case.listener} {code.name}"] += 1
        if case.target in _WRITES:
            self._note_write(case, code, answers)
        elif case.listener.startswith("internal") and code is grpc.StatusCode.OK:
            self._note((case.body,))
        return _judge_call(case, code, words, answers)

    def _note_write(self, case: Case, code: grpc.StatusCode, answers: list[bytes]) -> None:
        if code is grpc.StatusCode.OK:
            method = _CONTRACT.methods[case.target.rpartition("/")[2]]
            if not method.changes_nothing(method.parse(case.body)):
                # A delete of a missing record answers with no name, and keeps a row of it.
                self._note((*answers, case.body))
            elif method.name == "CreateSandbox":
                self.sent.checked.update(_names_in(answers))
        elif code in _UNKNOWN:
            self._note((case.body,))
            self.sent.names.update(_ids_of(case))

    def _note(self, texts: Iterable[bytes]) -> None:
        self.sent.names.update(_names_in(texts))

    async def _request(self, case: Case) -> str:
        host, _, port = self._addresses[case.listener].address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(case.body if case.kind == RAW else _request_bytes(case))
            if case.kind == RAW:
                writer.write_eof()
            status, body = await _answer(reader, case)
        except ConnectionError:
            status, body = 0, b""
        finally:
            writer.transport.abort()
        self.sent.answers[f"{case.listener} {status or 'closed'}"] += 1
        if status < 300:
            self._note((body, case.body, case.target.encode()))
        if status in (503, 504):
            self._note((case.body, case.target.encode()))
            self.sent.names.update(_ids_of(case))
        if not status and case.kind != RAW:
            return "the connection was closed without an answer"
        return _judge_http(status, body)


def _sendable(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((name, value.encode("latin-1") if name.endswith("-bin") else value) for name, value in headers)


def _streams(path: str) -> bool:
    return path.rpartition("/")[2] in ("WatchSandboxes", "WatchStatus", "ReadEvents", "Probe", "Watch")


def _names_in(texts: Iterable[bytes]) -> Iterator[str]:
    return (name.decode() for text in texts for name in _NAME.findall(text))


def _ids_of(case: Case) -> set[str]:
    """Ids in a create whose outcome is unknown: they stand alone there, without the collection."""
    text = case.body + case.target.encode()
    return {found.decode() for found in re.findall(rb"(?:u\d+-[a-z0-9]+-\d+|fuzz-\d+|inner-\d+)", text)}


async def _read(call: Any, answers: list[bytes]) -> None:
    """Read the first answers of a stream, and leave it."""
    try:
        async with asyncio.timeout(STREAM_SECONDS):
            async for answer in call:
                answers.append(answer)
                if len(answers) >= 3:
                    return
    except TimeoutError:
        pass
    finally:
        call.cancel()


def _judge_call(case: Case, code: grpc.StatusCode, words: str, answers: list[bytes]) -> str:
    if code in _NEVER:
        return f"{code.name}: {words}"
    if code is grpc.StatusCode.UNAVAILABLE and words.startswith(" "):
        return f"UNAVAILABLE without a reason: {words}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not case.seconds:
        return f"DEADLINE_EXCEEDED: {words}"
    if code is grpc.StatusCode.CANCELLED:
        return f"CANCELLED: {words}"
    if code is grpc.StatusCode.OK and _destroys(case, answers):
        return "an order that destroys something was accepted"
    return ""


def _destroys(case: Case, answers: list[bytes]) -> bool:
    if case.target == _CONTROL + "DropParked":
        # All events without a right code may be dropped: there are none.
        return events_pb2.DropParkedResponse.FromString(answers[0]).count > 0
    if case.target in _DESTRUCTIVE:
        return True
    if case.target == _CONTROL + "StartJob":
        return control_pb2.StartJobResponse.FromString(answers[0]).job.kind == "seize"
    if case.target == _CONTROL + "AdvancePhase":
        phase = control_pb2.AdvancePhaseResponse.FromString(answers[0]).setting.phase
        return phase == control_pb2.PHASE_DEPRECATED
    return False


def _request_bytes(case: Case) -> bytes:
    verb, _, target = case.target.partition(" ")
    found = [("host", "fuzz"), *case.headers]
    if case.body or verb in ("POST", "PUT", "PATCH"):
        found.append(("content-length", str(len(case.body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in found)
    return f"{verb} {target} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "replace") + case.body


async def _answer(reader: asyncio.StreamReader, case: Case) -> tuple[int, bytes]:
    """Code and body; 0 if the listener closed the connection without an answer. A stream is left after a moment."""
    parser = h11.Connection(h11.CLIENT)
    if case.kind != RAW:
        verb = case.target.partition(" ")[0]
        parser.send(h11.Request(method=verb, target="/", headers=[("host", "fuzz")]))
        parser.send(h11.EndOfMessage())
    status, body, streams = 0, b"", False
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            try:
                async with asyncio.timeout(STREAM_SECONDS if streams else CALL_SECONDS):
                    data = await reader.read(65536)
            except TimeoutError:
                if streams:
                    return status, body
                raise
            if not data and not status:
                return 0, b""
            parser.receive_data(data)
        elif isinstance(event, h11.InformationalResponse):
            continue
        elif isinstance(event, h11.Response):
            status = event.status_code
            kinds = [value for name, value in event.headers if name == b"content-type"]
            streams = any(b"event-stream" in kind or b"connect+" in kind or b"grpc-web" in kind for kind in kinds)
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            return status, body


def _judge_http(status: int, body: bytes) -> str:
    if status >= 500 and not any(word.encode() in body for word in _DOCUMENTED.get(status, ())):
        return f"HTTP {status}: {body[:300]!r}"
    if (found := re.search(rb"grpc-status: ?(\d+)", body)) and int(found[1]) in _NEVER_NUMBERS:
        return f"gRPC-Web: {body[-300:]!r}"
    if body.startswith(b'{"jsonrpc"') and _rpc_code(body) == -32603:
        return f"MCP: an internal error: {body[:300]!r}"
    return ""


def _rpc_code(body: bytes) -> int:
    try:
        found = json.loads(body)
    except ValueError:
        return 0
    return int(found.get("error", {}).get("code", 0))


@asynccontextmanager
async def open_sender(addresses: Mapping[str, Address]) -> AsyncIterator[Sender]:
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(open_channel(one.address))
            for name, one in addresses.items()
            if not name.startswith("http")
        }
        for name, one in addresses.items():
            if name.startswith("http"):
                # The first request imports the SDK, which takes long on a busy machine.
                await ask(one.address, "POST", "/mcp", b"{}", {"content-type": "application/json"})
        yield Sender(addresses, channels)
