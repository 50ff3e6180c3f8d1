"""The metadata of a protected resource, from which MCP clients learn the issuer of tokens.

Source: https://www.rfc-editor.org/rfc/rfc9728.
"""

from __future__ import annotations

import json
import re

from starlette.types import Receive, Scope, Send

from libs.http.asgi import respond
from libs.http.errors import NoSuchVerb, failure_of

WELL_KNOWN = "/.well-known/oauth-protected-resource"
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class ProtectedResource:
    """An ASGI application that serves the metadata of one resource, for clients that look for the issuer of tokens."""

    def __init__(self, path: str, issuer: str, public_url: str = "") -> None:
        """`public_url`: address of the listener for clients. Empty: from the request, as the client has reached it."""
        self.paths = (WELL_KNOWN, WELL_KNOWN + path)
        self._path = path
        self._issuer = issuer
        self._public_url = public_url.rstrip("/")

    def address(self, scope: Scope) -> str:
        """Address of this metadata; "" if the client does not name a host."""
        base = self._base(scope)
        return f"{base}{self.paths[1]}" if base else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = WELL_KNOWN
        if scope["method"] not in ("GET", "HEAD"):
            refused = failure_of(NoSuchVerb(scope["method"], ("GET", "HEAD")))
            headers = {"connection": "close", **refused.headers()}
            await respond(send, refused.http_code, headers, refused.json(), "application/json")
            return
        body = {
            "resource": f"{self._base(scope)}{self._path}",
            "authorization_servers": [self._issuer],
            "bearer_methods_supported": ["header"],
        }
        data = json.dumps(body).encode()
        await respond(send, 200, {}, data, "application/json", body=scope["method"] != "HEAD")

    def _base(self, scope: Scope) -> str:
        if self._public_url:
            return self._public_url
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        return f"{scope.get('scheme', 'http')}://{host}" if _HOST.fullmatch(host) else ""
