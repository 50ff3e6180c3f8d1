"""Calls to a router's control API. Errors of the API become errors of the command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc

from libs.errors import BatonError
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.rpc.auth import MAX_BEARER_CHARACTERS, operator_metadata, read_token
from libs.rpc.channel import OPTIONS
from libs.rpc.errors import reason_of
from libs.rpc.tls import meaning, open_channel
from libs.tls.files import NamedFile, TlsFiles, TlsUnfit
from libs.tls.process import ClientTls
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Common, Tls
from services.router.core.phase import Phase
from services.router.core.runbooks import of_reason

CALL_SECONDS = 10.0

PHASE_NUMBERS = {phase: pb.Phase.Value(f"PHASE_{phase.value}") for phase in Phase}

_OPTIONS = re.compile(r"tls_[a-z_]+")

_USAGE = frozenset({grpc.StatusCode.INVALID_ARGUMENT})

_REMEDIES = {
    "TOKEN_REFUSED": "the router requires its shared token: name its file with --token-file",
    "TOKEN_MISSING": "the router requires a token: name the file of yours with --token-file",
    "TOKEN_EXPIRED": "your token has expired: get a new one, and write it to the file of --token-file",
    "TOKEN_WRONG_AUDIENCE": "your token was issued for another service: get one for the control listener",
    "CERTIFICATE_MISSING": "the router requires a client certificate: give yours with --tls-certificate and --tls-key",
    "CERTIFICATE_UNKNOWN": "the router does not know your certificate: ask an admin to add its name to the router's"
    " control_auth_file",
}
"""Remedies by the reason of a refusal."""


class Control:
    """One router's control API."""

    def __init__(self, channel: grpc.Channel, address: str, token: str) -> None:
        self._stub = ControlServiceStub(channel)
        self._address = address
        self._metadata = operator_metadata(token)

    def call(self, method: str, request: Any, seconds: float = CALL_SECONDS) -> Any:
        """Raises CommandFailed."""
        try:
            return getattr(self._stub, method)(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def watch(self, interval_seconds: float) -> Iterator[pb.GetStatusResponse]:
        """Yield the status at each interval. Raises CommandFailed if the router is unavailable or ends the stream."""
        request = pb.WatchStatusRequest(interval_seconds=interval_seconds)
        for answer in self.stream("WatchStatus", request):
            yield answer.status

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """Yield the answers of a stream. Raises CommandFailed if the router is unavailable or ends it."""
        answers = getattr(self._stub, method)(request, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise self._failure(error) from None
        finally:
            answers.cancel()

    def _failure(self, error: Any) -> CommandFailed:
        reason, _ = reason_of(cast(grpc.aio.AioRpcError, error))
        failed = self._described(error)
        failed.page = of_reason(reason or "")
        return failed

    def _described(self, error: Any) -> CommandFailed:
        code: grpc.StatusCode = error.code()
        message = error.details() or code.name
        reason, found = reason_of(cast(grpc.aio.AioRpcError, error))
        if reason == "GATE_BLOCKED":
            inconclusive = found.get("verdict") == "INCONCLUSIVE"
            return CommandFailed(message, Exit.INCONCLUSIVE if inconclusive else Exit.BLOCKED)
        if reason == "SECOND_PERSON_NEEDED":
            return CommandFailed(message, Exit.SECOND_PERSON)
        if reason == "ROLE_MISSING":
            remedy = "ask a colleague who has the role, or an admin for it; the token or certificate carries your roles"
            return CommandFailed(f"{message}; {remedy}", Exit.REFUSED)
        if reason and code is grpc.StatusCode.UNAUTHENTICATED:
            return CommandFailed(_REMEDIES.get(reason, f"the router refuses your token: {message}"), Exit.REFUSED)
        if not reason and (refused := self._refused(message)):
            return CommandFailed(f"the router at {self._address} cannot be used: {refused}")
        if not reason and code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            return CommandFailed(
                f"no router answers at {self._address}: start one, or name its control address with --address"
            )
        return CommandFailed(message, Exit.USAGE if code in _USAGE else Exit.FAILED)

    def _refused(self, details: str) -> str:
        """Why TLS failed, in the words of this command's options; "" if it did not."""
        found = meaning(details)
        return _OPTIONS.sub(lambda name: f"--{name[0].replace('_', '-')}", found)


@contextmanager
def control(options: Common) -> Iterator[Control]:
    """Connect to the router. Raises CommandFailed if the token cannot be read."""
    try:
        token = read_bearer(options.token_file)
        tls = client_tls(options)
    except BatonError as error:
        raise CommandFailed(error.message, Exit.USAGE) from None
    with open_channel(options.address, tls, OPTIONS) as channel:
        yield Control(channel, options.address, token)


def read_bearer(path: Path | None) -> str:
    """The caller's token in the file; "" without a file. Raises TokenUnfit."""
    return read_token(path, MAX_BEARER_CHARACTERS).decode() if path else ""


def client_tls(options: Tls) -> ClientTls | None:
    """TLS as the options say; None without a CA. Raises TlsUnfit."""
    if options.tls_ca is None:
        for name in ("tls_certificate", "tls_key", "tls_server_name"):
            if getattr(options, name):
                raise TlsUnfit(f"--{name.replace('_', '-')}: it is used with --tls-ca only: name the router's CA")
        return None
    files = TlsFiles(
        _named("--tls-certificate", options.tls_certificate),
        _named("--tls-key", options.tls_key),
        NamedFile("--tls-ca", options.tls_ca),
    )
    return ClientTls(files, options.tls_server_name)


def _named(option: str, path: Path | None) -> NamedFile | None:
    return None if path is None else NamedFile(option, path)
