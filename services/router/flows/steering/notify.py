"""Delivery of notices by webhook: one router, the holder of a lease, sends them, one after the other.

A notice that is not delivered is tried again, after a pause that doubles up to a minute; the ones after it wait in the
journal. So nothing is queued in memory, and the calls of clients never wait. A receiver that refuses a notice itself
(4xx) is asked REFUSALS times: then the notice is given up, since the ones after it may be well.

Requests are signed as Standard Webhooks 1.0 says (https://www.standardwebhooks.com): the headers `webhook-id`,
`webhook-timestamp` and `webhook-signature`, which is "v1," and the HMAC-SHA256 of "ID.TIMESTAMP.BODY" in base64.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx2

from libs.clock import Clock
from libs.errors import BatonError
from libs.identity.jwks import is_local
from libs.secret_file import SecretFile
from libs.tasks import Loop
from services.router.control.port import ControlStore, RememberedValues
from services.router.core.gates import GateResult
from services.router.core.jobs import Job
from services.router.flows.steering.notices import CONTENT_TYPE, MOST_ENTRIES, Notice, Sent, State, due

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
POST_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
LEASE_NAME, LEASE_SECONDS = "notices", 15.0
SENT = "notices"
"""Name of the remembered value."""
REFUSALS = 3
_AGAIN = frozenset({408, 425, 429})
"""Client errors that say nothing against the request itself."""
LEAST_SECRET_BYTES = 24


class Control(ControlStore, RememberedValues, Protocol):
    """The parts of the control store that notices need."""


class NotDelivered(BatonError):
    """A notice was not delivered; it is tried again."""

    code = "UNAVAILABLE"
    reason = "NOTICE_NOT_DELIVERED"


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
    """The receiver of notices."""

    def __init__(self, url: str, source: str, secret: SecretFile[bytes] | None, clock: Clock) -> None:
        """`source`: the migrated service, for the events' attribute. `secret`: None for notices without signatures."""
        self._url = url
        self._source = source
        self._secret = secret
        self._clock = clock
        self._context = ssl.create_default_context()

    async def post(self, notice: Notice) -> int:
        """Returns the status. Redirects are not followed. Raises NotDelivered."""
        body = notice.to_json(self._source)
        headers = {"content-type": CONTENT_TYPE}
        if self._secret is not None:
            headers |= signed_headers(notice.id, int(self._clock.now()), body, self._secret.content)
        try:
            async with (
                asyncio.timeout(POST_SECONDS),
                httpx2.AsyncClient(
                    verify=self._context, timeout=httpx2.Timeout(POST_SECONDS), trust_env=not is_local(self._url)
                ) as client,
                # The answer's body is not read: it may be of any size.
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                return int(answer.status_code)
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            raise NotDelivered(f"the receiver does not answer: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class Watched:
    """What notices are about, beside the setting."""

    jobs: Callable[[], Sequence[Job]]
    gates: Callable[[], Sequence[GateResult]]
    """Of the next step."""
    conflicts: Callable[[], dict[str, int]]
    """Unresolved conflicts by store, where they are known."""


class Notifications:
    """The caller runs `loop`."""

    def __init__(self, control: Control, watched: Watched, webhook: Webhook, clock: Clock, holder: str) -> None:
        """`holder`: this router's name."""
        self._control = control
        self._watched = watched
        self._webhook = webhook
        self._clock = clock
        self._holder = holder
        self._refused = ("", 0)
        """Id of a notice that the receiver refuses, and how often."""
        self.given_up = 0
        """Notices that the receiver has refused, since the start."""
        self.loop = Loop("notices", self._body, longest_pause_seconds=LONGEST_PAUSE_SECONDS)

    @property
    def alerts(self) -> list[str]:
        found = [f"notices are not delivered: {self.loop.trouble}"] if self.loop.trouble else []
        if self.given_up:
            found.append(f"{self.given_up} notices were refused by the receiver, and given up")
        return found

    async def look(self) -> None:
        """Deliver what is due, if this router is the one to do it. Raises NotDelivered, ControlUnavailable."""
        if not await self._control.lease(LEASE_NAME, self._holder, LEASE_SECONDS):
            return
        setting = await self._control.load()
        entries = await self._control.journal(MOST_ENTRIES)
        watched = self._watched
        state = State(setting, entries, watched.jobs(), watched.gates(), watched.conflicts(), self._clock.now())
        sent = Sent.from_json(await self._control.remembered(SENT) or "")
        if sent is None:
            # The first look ever: what has been before is no news.
            await self._control.remember(SENT, Sent.of(state).to_json())
            return
        for notice, after in due(sent, state):
            if notice is not None:
                await self._deliver(notice)
                # A delivery may take longer than the lease.
                await self._control.lease(LEASE_NAME, self._holder, LEASE_SECONDS)
            await self._control.remember(SENT, after.to_json())

    async def _deliver(self, notice: Notice) -> None:
        """Raises NotDelivered."""
        status = await self._webhook.post(notice)
        if 200 <= status < 300:
            return
        if 400 <= status < 500 and status not in _AGAIN:
            known, times = self._refused
            self._refused = notice.id, (times if known == notice.id else 0) + 1
            if self._refused[1] >= REFUSALS:
                self.given_up += 1
                log.error("the receiver refuses the notice %s with %d, it is given up", notice.id, status)
                return
        raise NotDelivered(f"the receiver answers {status} to {notice.id}")

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)
