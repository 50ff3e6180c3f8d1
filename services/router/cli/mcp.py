"""`baton mcp`: the contract's tools for an MCP client over standard input and output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Tls, command

SANDBOXES = "libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService"
_TARGET = re.compile(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")


def register(app: typer.Typer) -> None:
    command(app, "mcp", Tls)(mcp)


def mcp(
    options: Tls,
    target: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC address for clients of A, B or a router.")],
    contract: Annotated[str, typer.Option(help="Compiled contract: package.module_pb2:ServiceName.")] = SANDBOXES,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="BATON_MCP_TOKEN_FILE", help="File with your token for the target. Read for each call."),
    ] = None,
) -> None:
    """Serve the contract's methods as MCP tools over stdin and stdout, for a
    desktop client that starts its own servers.

    \b
    The client's configuration:
      {"mcpServers": {"sandboxes": {"command": "baton",
        "args": ["mcp", "--target", "127.0.0.1:7600"]}}}
    A client that speaks HTTP needs no command: A, B and the router serve MCP
    at /mcp of their HTTP address. Ends when stdin ends. Exits with 1 if the
    target does not answer.
    """
    found = _TARGET.fullmatch(target)
    if found is None or not 0 < int(found[2]) < 65536:
        raise CommandFailed(f"--target: {target!r} is not an address: give HOST:PORT, as 127.0.0.1:7600", Exit.USAGE)
    import asyncio

    from libs.contract.descriptors import Contract
    from libs.contract.unfit import UnfitContract
    from libs.http.mcp_stdio import TargetAway, serve_stdio
    from libs.rpc.auth import TokenUnfit
    from libs.tls.files import TlsUnfit
    from services.router.cli.client import client_tls, read_bearer

    def token() -> str:
        return read_bearer(token_file)

    try:
        token()
        asyncio.run(serve_stdio(Contract.load(contract), target, client_tls(options), token))
    except UnfitContract as error:
        raise CommandFailed(f"--contract: {error.message}", Exit.USAGE) from None
    except (TlsUnfit, TokenUnfit) as error:
        raise CommandFailed(error.message, Exit.USAGE) from None
    except TargetAway as error:
        raise CommandFailed(error.message) from None
