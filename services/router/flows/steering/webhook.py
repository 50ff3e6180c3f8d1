"""Requests to an endpoint of somebody else, signed: notices go there, and a gate asks there.

They are signed by Standard Webhooks 1.0 (https://www.standardwebhooks.com): the headers `webhook-id`,
`webhook-timestamp` and `webhook-signature`, which is "v1," and the HMAC-SHA256 of "ID.TIMESTAMP.BODY" in base64.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from base64 import b64encode
from typing import NamedTuple

import httpx2

from libs.clock import Clock
from libs.identity.jwks import is_local
from libs.secret_file import SecretFile
from services.router.flows.steering.notices import CONTENT_TYPE, Notice

POST_SECONDS = 5.0
"""Time from the connection to the end of the answer."""
LEAST_SECRET_BYTES = 24


class Reply(NamedTuple):
    status: int = 0
    body: bytes = b""
    trouble: str = ""
    """Why there is no answer; "" if there is one."""


def parse_secret(data: bytes) -> bytes:
    """Raises ValueError."""
    secret = data.strip()
    if len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(f"the secret has {len(secret)} bytes, {LEAST_SECRET_BYTES} are needed")
    return secret


def signed_headers(notice_id: str, seconds: int, body: bytes, secret: bytes) -> dict[str, str]:
    text = f"{notice_id}.{seconds}.".encode() + body
    signature = b64encode(hmac.digest(secret, text, "sha256")).decode()
    return {"webhook-id": notice_id, "webhook-timestamp": str(seconds), "webhook-signature": f"v1,{signature}"}


class Webhook:
    def __init__(self, url: str, source: str, secret: SecretFile[bytes] | None, clock: Clock) -> None:
        """`source`: the migrated service, for the events' attribute. `secret`: None for requests without signatures."""
        self._url = url
        self._source = source
        self._secret = secret
        self._clock = clock
        self._context = ssl.create_default_context()

    async def post(self, notice: Notice, most_bytes: int = 0) -> Reply:
        """Redirects are not followed: they could lead to another host. `most_bytes`: of the answer's body; 0: it is not
        read."""
        body = notice.to_json(self._source)
        # An answer that is small only because it is compressed is not unpacked.
        headers = {"content-type": CONTENT_TYPE, "accept-encoding": "identity"}
        if self._secret is not None:
            headers |= signed_headers(notice.id, int(self._clock.now()), body, self._secret.content)
        try:
            async with (
                asyncio.timeout(POST_SECONDS),
                httpx2.AsyncClient(
                    verify=self._context, timeout=httpx2.Timeout(POST_SECONDS), trust_env=not is_local(self._url)
                ) as client,
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                return await _read(answer, most_bytes)
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            return Reply(trouble=type(error).__name__)


async def _read(answer: httpx2.Response, most_bytes: int) -> Reply:
    body = bytearray()
    if most_bytes:
        async for part in answer.aiter_raw():
            body += part
            if len(body) > most_bytes:
                return Reply(trouble=f"an answer of more than {most_bytes} bytes")
    return Reply(answer.status_code, bytes(body))
