"""The listener of the operators' page, if the settings name one.

It is a listener of its own, apart from that of clients, so that operators' verbs stay where `control_auth` holds and a
network can keep clients away from them (docs/decisions/console.md).
"""

from __future__ import annotations

from libs.clock import Clock
from libs.http.listener import HttpConfig, HttpListener
from libs.identity.opening import NONE
from libs.rpc.auth import read_token
from libs.rpc.server import CannotListen, Server, TypedService, raw_service
from libs.tls.hosts import is_loopback
from services.router.features.operators import SHARED, kind_of
from services.router.settings import RouterSettings
from services.router.web.app import Access, Console
from services.router.web.calls import ControlApi
from services.router.web.session import Seal

SETTING = "console"


def console_listener(settings: RouterSettings, api: TypedService, control: Server, clock: Clock) -> HttpListener:
    """`control`: the listener of `api`, whose authentication, limits and TLS hold here too. Raises CannotListen,
    TokenUnfit."""
    kind = kind_of(settings)
    if kind in ("", NONE) and not is_loopback(settings.console):
        raise CannotListen(
            f"{SETTING}: {settings.console} can be reached from other machines: set control_auth to jwt, mtls, tokens"
            " or token, or listen on 127.0.0.1"
        )
    access = Access(needs_token=kind in (SHARED, "jwt", "tokens"), needs_name=kind in ("", NONE, SHARED))
    secret = read_token(settings.console_secret_file) if settings.console_secret_file else b""
    page = Console(ControlApi(raw_service(api), control.gate), access, Seal(secret), clock, lambda: listener.draining)
    config = HttpConfig(
        settings.console, SETTING, tls=control.tls, host_share=control.gate.caller_share, share_port=control.share_port
    )
    listener = HttpListener(config, page.app())
    return listener
