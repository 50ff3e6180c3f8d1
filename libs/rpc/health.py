"""Health check of listeners from outside, for example for a container.

    python -m libs.rpc.health [--tls-ca FILE] HOST:PORT [http://HOST:PORT ...]

Exit code 0: all serve. 1: one of them does not serve or does not answer in time. Health needs no token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.rpc.tls import meaning, open_channel
from libs.tls.files import TlsUnfit, context_of
from libs.tls.process import ClientTls, TlsPaths, load_tls

HTTP = "http://"
"""Prefix of the address of an HTTP listener. With a CA it is asked over TLS too."""
_SECONDS = 3.0


def trouble(address: str, timeout_seconds: float = _SECONDS, tls: ClientTls | None = None) -> str:
    """Why the listener does not serve, or "". Blocks for at most the timeout, in seconds."""
    if address.startswith(HTTP):
        return _http_trouble(address.removeprefix(HTTP), timeout_seconds, tls)
    # A proxy in the environment is not for a listener that is checked from beside it.
    with open_channel(address, tls, (("grpc.enable_http_proxy", 0),)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return meaning(error.details() or "") or f"{error.code().name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _http_trouble(address: str, timeout_seconds: float, tls: ClientTls | None) -> str:
    # http.client ignores proxies in the environment.
    if tls is None:
        connection = HTTPConnection(address, timeout=timeout_seconds)
    else:
        connection = _Named(address, tls, timeout_seconds)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return "" if answer.status == HTTPStatus.OK else f"{answer.status} {answer.reason}"
    except (OSError, HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


class _Named(HTTPSConnection):
    """A connection that checks the name in the setting, if there is one."""

    def __init__(self, address: str, tls: ClientTls, timeout_seconds: float) -> None:
        self._tls_context = context_of(tls.files.material, server=False)
        super().__init__(address, timeout=timeout_seconds, context=self._tls_context)
        self._name = tls.server_name or self.host

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock = self._tls_context.wrap_socket(self.sock, server_hostname=self._name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m libs.rpc.health", description="Do these listeners serve?")
    parser.add_argument("address", nargs="+", metavar="[http://]HOST:PORT")
    parser.add_argument("--timeout", type=float, default=_SECONDS, help="seconds for each address (%(default)s)")
    parser.add_argument("--tls-ca", type=Path, help="PEM file with the CA of the listeners: they are asked over TLS")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file with a certificate to show")
    parser.add_argument("--tls-key", type=Path, help="PEM file with its key")
    parser.add_argument("--tls-server-name", default="", help="name in their certificates, if not the host")
    given = parser.parse_args(arguments)
    try:
        paths = TlsPaths(given.tls_certificate, given.tls_key, ca=given.tls_ca, server_name=given.tls_server_name)
        tls = load_tls(paths).client
    except TlsUnfit as error:
        print(error, file=sys.stderr)
        return 2
    for address in given.address:
        if found := trouble(address, given.timeout, tls):
            print(f"{address}: {found}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
