"""Health check of listeners from outside, for example for a container.

    python -m libs.rpc.health HOST:PORT [http://HOST:PORT ...]

Exit code 0: all serve. 1: one of them does not serve or does not answer in time. Health needs no token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HTTP = "http://"
"""Prefix of the address of an HTTP listener."""
_SECONDS = 3.0


def trouble(address: str, timeout_seconds: float = _SECONDS) -> str:
    """Why the listener does not serve, or "". Blocks for at most the timeout, in seconds."""
    if address.startswith(HTTP):
        return _http_trouble(address.removeprefix(HTTP), timeout_seconds)
    # A proxy in the environment is not for a listener that is checked from beside it.
    with grpc.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _http_trouble(address: str, timeout_seconds: float) -> str:
    # http.client ignores proxies in the environment.
    connection = HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return "" if answer.status == HTTPStatus.OK else f"{answer.status} {answer.reason}"
    except (OSError, HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m libs.rpc.health", description="Do these listeners serve?")
    parser.add_argument("address", nargs="+", metavar="[http://]HOST:PORT")
    parser.add_argument("--timeout", type=float, default=_SECONDS, help="seconds for each address (%(default)s)")
    given = parser.parse_args(arguments)
    for address in given.address:
        if found := trouble(address, given.timeout):
            print(f"{address}: {found}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
