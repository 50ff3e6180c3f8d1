"""Requests that a web page makes a browser send.

A page of a stranger can make a browser inside the network call this listener. Without a token the call might be served:
everybody is served, or the browser shows a client certificate by itself. A browser names the page's origin in every
request that is not a GET or HEAD; other clients name none. A foreign page cannot add a token: no answer here allows it
(CORS).

DNS rebinding makes the page's own name resolve to this listener, so a name proves nothing over plain HTTP. Over TLS the
name is in the listener's certificate. Such a page can also read, with a GET that has no origin. Only the name in Host
shows it, and only on loopback are all good names known: beyond it, clients without a token may use any.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from libs.http.errors import RefusedByHttp

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Verbs without an effect."""


class ForeignOrigin(RefusedByHttp):
    """The request comes from a web page of another origin."""

    code = "PERMISSION_DENIED"
    reason = "FOREIGN_ORIGIN"
    http_code = 403


def check_page(scope: Scope) -> None:
    """Raises ForeignOrigin for a request from a foreign page, unless it has a token. A request without an effect is
    refused only if the page could read the answer."""
    headers = Headers(scope=scope)
    if scope["method"] in SAFE:
        if "authorization" not in headers:
            _check_host(scope, headers)
        return
    if "authorization" in headers or (scope["scheme"] == "https" and _is_same(headers)):
        return
    check_origin(headers)


def _check_host(scope: Scope, headers: Headers) -> None:
    """Raises ForeignOrigin for a request to loopback by a name that a stranger can own."""
    address, _ = scope.get("server") or ("", 0)
    if scope["scheme"] == "https" or not _is_loopback(address):
        return
    try:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        host = "?"
    # Names of the internet have a dot.
    if "." in host and not (host.endswith(".localhost") or _is_address(host, address)):
        raise ForeignOrigin(f"host {host[:200]!r} is not served: call localhost or 127.0.0.1, or send a token")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def check_origin(headers: Headers) -> None:
    """Raises ForeignOrigin unless the request has no origin, or one for which no name was resolved: this machine, or
    the listener by its address."""
    origin = headers.get("origin")
    if origin is None:
        return
    try:
        host = urlsplit(origin).hostname or ""
        listener = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        host = listener = ""
    if host == "localhost" or host.endswith(".localhost") or _is_address(host, listener):
        return
    raise ForeignOrigin(
        f"origin {origin[:200]!r} is not served: open the page by the listener's IP address or as localhost, or call"
        " without an Origin header"
    )


def _is_same(headers: Headers) -> bool:
    return headers.get("origin") == f"https://{headers.get('host', '')}"


def _is_address(host: str, listener: str) -> bool:
    """Whether the origin's host is a loopback address, or the address that the request was sent to."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or host == listener
