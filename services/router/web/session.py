"""Sessions of the page: a sealed cookie with the operator's credentials, and the page's guard against foreign forms.

The router keeps no session. The cookie holds the token with which the operator signed in, encrypted and authenticated
(Fernet) under a key of the router, so a stolen cookie is worth no more than a session, and a token that is revoked or
expires ends the session at the next request. Pure, apart from random numbers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from libs.http.errors import RefusedByHttp

PATH = "/console"
COOKIE = "baton_console"
SECONDS = 12 * 3600
"""Lifetime of a session. A shift ends, a browser stays open."""
COOKIE_BYTES = 3800
"""Browsers drop a cookie of more than 4096 bytes with its attributes."""
CSRF_FIELD = "csrf"


class SessionTooLarge(RefusedByHttp):
    """The token is too long for a cookie: sign in with one of at most 2 KiB, or use the command line."""

    code = "INVALID_ARGUMENT"
    reason = "SESSION_TOO_LARGE"


class ForeignForm(RefusedByHttp):
    """The form was not sent by this page, or its session has ended: open the page again."""

    code = "PERMISSION_DENIED"
    reason = "FOREIGN_FORM"
    http_code = 403


@dataclass(frozen=True, slots=True)
class Session:
    actor: str
    """Name that the operator gives, for the journal."""
    csrf: str
    """Value that each form of this session must carry."""
    token: str = ""
    """The operator's token; "" where none is needed."""

    def __repr__(self) -> str:
        return f"<Session of {self.actor!r}>"

    @classmethod
    def begin(cls, actor: str, token: str = "") -> Session:
        return cls(actor, secrets.token_urlsafe(24), token)


class Seal:
    """Turns sessions into cookies and back."""

    def __init__(self, key: bytes = b"") -> None:
        """`key`: the secret that routers share; without one, this process accepts only its own cookies."""
        digest = hashlib.sha256(b"baton console\0" + key).digest() if key else secrets.token_bytes(32)
        self._fernet = Fernet(base64.urlsafe_b64encode(digest))

    def seal(self, session: Session, now: float) -> str:
        """The cookie's value. Raises SessionTooLarge."""
        value = self._fernet.encrypt_at_time(json.dumps(asdict(session)).encode(), int(now)).decode()
        if len(value) > COOKIE_BYTES:
            raise SessionTooLarge()
        return value

    def open(self, value: str, now: float) -> Session | None:
        """None if this key did not seal it, or its time is over."""
        try:
            data = self._fernet.decrypt_at_time(value.encode("ascii", "replace"), SECONDS, int(now))
            return Session(**json.loads(data))
        except (InvalidToken, ValueError, TypeError):
            return None

    def end(self, value: str) -> float:
        """UNIX time at which a session that this key has opened ends."""
        return float(self._fernet.extract_timestamp(value.encode()) + SECONDS)


def cookie_of(headers: Headers) -> str:
    """Value of the session's cookie; "" without one."""
    # Cookies know no ports: a program on the same host may have set one that `http.cookies` cannot read.
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def set_cookie(value: str, *, secure: bool) -> str:
    """The Set-Cookie header. An empty value ends the session."""
    age = SECONDS if value else 0
    flags = "; Secure" if secure else ""
    return f"{COOKIE}={value}; Path={PATH}; Max-Age={age}; HttpOnly; SameSite=Strict{flags}"


def check_form(session: Session, headers: Headers, given: str) -> None:
    """Raises ForeignForm unless a page of this listener sent the form in this session."""
    check_origin(headers)
    if not hmac.compare_digest(given.encode(), session.csrf.encode()):
        raise ForeignForm()


def check_origin(headers: Headers) -> None:
    """Raises ForeignForm unless the browser names this listener as the page's origin.

    Only the host is compared: a proxy that ends TLS changes the scheme. Another port is another origin.
    """
    try:
        origin = urlsplit(headers.get("origin", "")).netloc
    except ValueError:
        origin = ""
    if not origin or origin != headers.get("host", ""):
        raise ForeignForm()
