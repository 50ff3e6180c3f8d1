"""Authentication codes of events: who does not have a key cannot make, change or move an event.

The header `baton-mac` of a message is the ASCII text `1:ID:CODE`. ID is the id of a key, CODE the HMAC-SHA-256 (RFC
2104) under that key in 64 lower-case hexadecimal digits, over these bytes:

    "baton event 1" 0x00
    string(ID)  string(TOPIC)
    string(KEY)
    u32(N)  then for each of N headers, in the order of the message:  string(NAME)  string(CONTENT)
    string(VALUE)

`u32` is four bytes, big-endian. `string` is `u32(number of bytes)` and the bytes; texts are UTF-8. TOPIC is the name of
the log, KEY the message's key ("" if it has none). The headers that count are those by which a reader acts: every
header whose name in lower case is `content-type`, or begins with `ce_` or `baton-`, repeated ones included, but
`baton-mac` itself. Others, such as `traceparent`, may be added or changed on the way.

`tests/contracts/golden/event_codes.json` has examples for other implementations. A message has exactly one `baton-mac`.
A code proves the author of an event and its topic. It does not prove that the event is the newest: a repeated event is
old by its version, and changes nothing.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import sha256

from libs.eventlog.key_ring import KeyRing
from libs.eventlog.port import Event

HEADER = "baton-mac"

_FORMAT = b"1"
_CONTEXT = b"baton event 1\0"
_PREFIXES = ("ce_", "baton-")
_CONTENT_TYPE = "content-type"
_KNOWN_NAME_CHARACTERS = 64
_BLOCK_BYTES = 64
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_pack_length = struct.Struct(">I").pack


_PROOF = Event("", b"", (("baton-proof", b"relay"),))
"""No event that a reader acts on: it has no key and no type."""


class Codes:
    """Signs and checks the events of one topic. `ring` is asked at each use, since keys change."""

    def __init__(self, ring: Callable[[], KeyRing], topic: str) -> None:
        self._ring = ring
        self._topic = topic
        self._known: KeyRing | None = None
        self._states: dict[str, _Hmac] = {}
        """States by key id, each after the bytes that are the same in every event."""

    def __repr__(self) -> str:
        return f"<Codes {self._topic} {self._known!r}>"

    @property
    def ring(self) -> KeyRing:
        """The ring in use."""
        return self._ring()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The id of the key that signs, then those of the other keys."""
        ring = self._ring()
        return (ring.sign, *sorted(set(ring.keys) - {ring.sign}))

    def sign(self, event: Event) -> Event:
        """The event with its code. It shares the value."""
        self._follow_ring()
        assert self._known is not None
        name = self._known.sign
        code = _code(self._states[name], event)
        headers = (*event.headers, (HEADER, b"%b:%b:%b" % (_FORMAT, name.encode(), code)))
        return Event(event.key, event.value, headers)

    def why_wrong(self, event: Event) -> str:
        """Why the event's code is not right; "" if it is."""
        self._follow_ring()
        found = [content for name, content in event.headers if name.lower() == HEADER]
        if len(found) != 1:
            return f"{len(found)} headers {HEADER}" if found else f"no header {HEADER}"
        form, _, rest = found[0].partition(b":")
        name, _, code = rest.partition(b":")
        if form != _FORMAT:
            return f"{HEADER} is not of the form 1:ID:CODE"
        state = self._states.get(name.decode("ascii", "replace"))
        if state is None:
            return f"{HEADER} names key {name[:32].decode('ascii', 'replace')!r}, which is not in the ring"
        if not hmac.compare_digest(_code(state, event), code):
            return f"{HEADER} is not the code of this event in {self._topic} under key {name.decode()}"
        return ""

    def proof(self) -> bytes:
        """A code that shows that its maker signs events of this topic with a key of the ring."""
        return self.sign(_PROOF).headers[-1][1]

    def why_wrong_proof(self, code: bytes) -> str:
        """Like `why_wrong`, for a `proof`."""
        return self.why_wrong(Event(_PROOF.key, _PROOF.value, (*_PROOF.headers, (HEADER, code))))

    def _follow_ring(self) -> None:
        ring = self._ring()
        if ring is self._known:
            return
        states = {}
        for name, key in ring.keys.items():
            states[name] = _Hmac(key, _CONTEXT + _string(name.encode()) + _string(self._topic.encode()))
        self._states, self._known = states, ring


class _Hmac:
    """HMAC-SHA-256 of messages that begin alike. A copy of hashlib's states costs half of a copy of `hmac`'s."""

    def __init__(self, key: bytes, begin: bytes) -> None:
        if len(key) > _BLOCK_BYTES:
            key = sha256(key).digest()
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(padded.translate(_INNER) + begin)
        self._outer = sha256(padded.translate(_OUTER))

    def code(self, *rest: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        for part in rest:
            inner.update(part)
        outer.update(inner.digest())
        return outer.hexdigest().encode()


def _code(state: _Hmac, event: Event) -> bytes:
    # In two parts: to join them would copy the value.
    return state.code(_before_value(event.key, event.headers, len(event.value)), event.value)


def _before_value(key: str, headers: Iterable[tuple[str, bytes]], value_bytes: int) -> bytes:
    parts: list[bytes] = []
    for name, content in headers:
        # The cache keeps no long names, which anybody may write.
        counted = _known_name(name) if len(name) <= _KNOWN_NAME_CHARACTERS else _counted_name(name)
        if counted:
            parts += (counted, _pack_length(len(content)), content)
    return b"".join((_string(key.encode()), _pack_length(len(parts) // 3), *parts, _pack_length(value_bytes)))


def _counted_name(name: str) -> bytes:
    """The name of a header that counts, as it is signed; else nothing."""
    lower = name.lower()
    counts = lower == _CONTENT_TYPE or (lower.startswith(_PREFIXES) and lower != HEADER)
    return _string(name.encode()) if counts else b""


_known_name = lru_cache(maxsize=256)(_counted_name)


def _string(content: bytes) -> bytes:
    return _pack_length(len(content)) + content
