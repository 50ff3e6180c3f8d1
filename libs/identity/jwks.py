"""The keys that verify tokens: a JSON Web Key Set (RFC 7517) from a file or an address, refreshed in the background.

If a refresh fails, the last good keys stay in force for a limited time. An unknown key id causes one more refresh, at
most every ten seconds, so that strangers cannot flood the issuer through this process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from libs.clock import Clock
from libs.errors import BatonError
from libs.identity.errors import KeysUnavailable
from libs.tasks import Loop

log = logging.getLogger(__name__)

UNKNOWN_KEY_SECONDS = 10.0
"""Shortest interval between two refreshes for an unknown key id."""
WAIT_SECONDS = 2.0
"""Longest wait of a call for a refresh."""
MOST_WAITING = 64
"""Maximum number of calls that wait for a refresh."""
_FETCH_SECONDS = 5.0
_AGAIN_SECONDS = 5.0
"""Interval between two attempts while a refresh fails."""
_FILE_SECONDS = 1.0
_DOCUMENT_BYTES = 1024 * 1024
_RSA_BITS = 2048

Read = Callable[[], Awaitable[bytes]]


class KeysUnfit(BatonError):
    """The keys cannot be read."""


@dataclass(frozen=True, slots=True)
class Key:
    kind: str
    """The family of its algorithms: RSA, EC or OKP."""
    algorithm: str
    """The only algorithm that it may verify; "" if the key set names none."""
    key: Any


@dataclass(frozen=True, slots=True)
class KeyTimes:
    refresh_seconds: float
    stale_seconds: float
    """How long the last good keys stay in force while refreshes fail."""


class Keys:
    """The current keys. `on_change` is called when they change."""

    def __init__(self, read: Read, times: KeyTimes, clock: Clock, on_change: Callable[[], None]) -> None:
        self._read = read
        self._times = times
        self._clock = clock
        self._on_change = on_change
        self._keys: Mapping[str, Key] = {}
        self._document = b""
        self._good_at: float | None = None
        self._asked_at: float | None = None
        """Last refresh for an unknown key."""
        self._refreshing: asyncio.Task[None] | None = None
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Keys {len(self._keys)}>"

    @property
    def fit_until(self) -> float:
        """Monotonic time until which the current keys are in force."""
        return -1.0 if self._good_at is None else self._good_at + self._times.stale_seconds

    async def find(self, key_id: str | None) -> Key | None:
        """The key with this id. Without an id, the only key there is. Raises KeysUnavailable."""
        found = self._find(key_id)
        if found is None and self._may_ask():
            await self._wait()
            found = self._find(key_id)
        if self._clock.monotonic() > self.fit_until:
            raise KeysUnavailable()
        return found

    async def refresh(self) -> None:
        """Raises KeysUnfit; the keys stay as they are then."""
        document = await self._read()
        if document != self._document:
            keys = read_keys(document)
            self._keys, self._document = keys, document
            log.info("%d keys verify tokens", len(keys))
            self._on_change()
        self._good_at = self._clock.monotonic()

    async def run_once(self, loop: Loop) -> None:
        """The body of the background refresh."""
        try:
            await self.refresh()
        except KeysUnfit as error:
            if self._clock.monotonic() > self.fit_until:
                log.error("%s; no token can be verified", error)
            else:
                log.warning("%s; the last good keys stay in force", error)
            await asyncio.sleep(min(_AGAIN_SECONDS, self._times.refresh_seconds))
        else:
            loop.well()
            await asyncio.sleep(self._times.refresh_seconds)

    def _find(self, key_id: str | None) -> Key | None:
        if key_id is not None:
            return self._keys.get(key_id)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _may_ask(self) -> bool:
        """Whether the call may wait for a refresh: one that runs, or a new one, which begins."""
        if self._waiting >= MOST_WAITING:
            return False
        if self._refreshing is not None:
            return True
        now = self._clock.monotonic()
        if self._asked_at is not None and now - self._asked_at < UNKNOWN_KEY_SECONDS:
            return False
        self._asked_at = now
        self._refreshing = asyncio.create_task(self._refresh_quietly())
        return True

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except KeysUnfit as error:
            log.warning("%s", error)
        finally:
            self._refreshing = None

    async def _wait(self) -> None:
        if (running := self._refreshing) is None:
            return
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await asyncio.shield(running)
        finally:
            self._waiting -= 1


def read_keys(document: bytes) -> Mapping[str, Key]:
    """The keys that can verify a token, by id; "" for a key without an id. Raises KeysUnfit if there are none.

    Symmetric keys, keys for encryption, short and unknown keys are left out.
    """
    try:
        entries = json.loads(document)["keys"]
        keys = {}
        for entry in entries:
            if (key := _read_key(entry)) is not None:
                keys[str(entry.get("kid", ""))] = key
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise KeysUnfit("jwt_keys: the document is not a JSON Web Key Set") from None
    if not keys:
        raise KeysUnfit("jwt_keys: the key set has no key that can verify a token")
    return keys


def _read_key(entry: Any) -> Key | None:
    kind = entry.get("kty")
    if kind not in ("RSA", "EC", "OKP") or entry.get("use", "sig") != "sig":
        return None
    public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        key = PyJWK.from_dict(public).key
    except PyJWTError:
        log.warning("jwt_keys: a key was left out, which cannot be read")
        return None
    if kind == "RSA" and key.key_size < _RSA_BITS:
        log.warning("jwt_keys: an RSA key was left out, which has less than %d bits", _RSA_BITS)
        return None
    return Key(kind, str(entry.get("alg", "")), key)


def read_file(path: Path) -> Read:
    async def read() -> bytes:
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise KeysUnfit(f"jwt_keys: {path} cannot be read: {error.strerror}") from None

    return read


def read_address(url: str) -> Read:
    """Redirects are not followed: they could lead to another host, or to one without TLS."""
    context = ssl.create_default_context()
    limits = httpx2.Timeout(_FETCH_SECONDS)

    async def read() -> bytes:
        try:
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                httpx2.AsyncClient(verify=context, timeout=limits, trust_env=not is_local(url)) as client,
                client.stream("GET", url) as answer,
            ):
                if answer.status_code != httpx2.codes.OK:
                    raise KeysUnfit(f"jwt_keys: the answer is {answer.status_code}")
                body = bytearray()
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _DOCUMENT_BYTES:
                        raise KeysUnfit(f"jwt_keys: the document is larger than {_DOCUMENT_BYTES} bytes")
                return bytes(body)
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            raise KeysUnfit(f"jwt_keys: the keys cannot be fetched: {type(error).__name__}") from None

    return read


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refresh_seconds_of(source: str, seconds: float) -> float:
    """A file is looked at every second; an address at the interval of the setting."""
    return seconds if is_address(source) else _FILE_SECONDS


def is_address(source: str) -> bool:
    return source.startswith(("https://", "http://"))
