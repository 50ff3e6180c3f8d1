"""Documents about a listener's contract: /openapi.json, and the page at / that lists its operations and tries them.

All are read once, when the listener opens. The page loads nothing from other hosts and runs no inline script; its
Content-Security-Policy enforces that.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.contract.descriptors import Contract
from libs.http.asgi import matches_etag, respond
from libs.http.errors import NoSuchVerb, failure_of

DOCUMENT, PAGE, SCRIPT = "/openapi.json", "/", "/try.js"
_FOLDER = "page"
_ALLOWED = ("GET", "HEAD")
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Document:
    """An ASGI application that serves one constant document."""

    path: str
    kind: str
    data: bytes
    headers: Mapping[str, str]

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self.path
        verb = scope["method"]
        if verb == "OPTIONS":
            await respond(send, 204, {"allow": ", ".join((*_ALLOWED, "OPTIONS"))})
            return
        if verb not in _ALLOWED:
            refused = failure_of(NoSuchVerb(verb, (*_ALLOWED, "OPTIONS")))
            # The rest of the request is not read, so the connection cannot be reused.
            headers = {"allow": refused.allowed, "connection": "close"}
            await respond(send, refused.http_code, headers, refused.json(), "application/json")
            return
        headers = {"etag": self.etag, **self.headers}
        if matches_etag(Headers(scope=scope).get("if-none-match", ""), self.etag):
            await respond(send, 304, headers)
            return
        await respond(send, 200, headers, self.data, self.kind, body=verb == "GET")


def documents(contract: Contract) -> Mapping[str, ASGIApp]:
    """Documents by path. Empty if the contract ships without its document, which `make openapi` writes."""
    return MappingProxyType({one.path: one for one in _documents(contract)})


def _documents(contract: Contract) -> Iterator[Document]:
    if not contract.package:
        return
    shipped = resources.files(contract.package) / DOCUMENT.removeprefix("/")
    if not shipped.is_file():
        return
    # The shipped file has line breaks for reviews, which clients do not need.
    text = json.dumps(json.loads(shipped.read_text()), ensure_ascii=False, separators=(",", ":"))
    yield Document(DOCUMENT, "application/json", text.encode(), {})
    folder = resources.files("libs.http") / _FOLDER
    page = (folder / "index.html").read_bytes()
    policy = {"content-security-policy": _policy(page), "referrer-policy": "no-referrer"}
    yield Document(PAGE, "text/html; charset=utf-8", page, policy)
    yield Document(SCRIPT, "text/javascript; charset=utf-8", (folder / "try.js").read_bytes(), {})


def _policy(page: bytes) -> str:
    """Allow scripts and calls of this listener only, and the page's own style."""
    styles = [base64.b64encode(hashlib.sha256(style).digest()).decode() for style in _STYLE.findall(page)]
    allowed = " ".join(f"'sha256-{style}'" for style in styles) or "'none'"
    return (
        f"default-src 'none'; script-src 'self'; style-src {allowed}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
