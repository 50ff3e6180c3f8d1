"""Message headers packed into one value, for a file or a database column."""

from __future__ import annotations

import struct

from libs.eventlog.port import UNREADABLE_HEADER

Headers = tuple[tuple[str, bytes], ...]


def pack(headers: Headers) -> bytes:
    """Pack name and value of each header, each after its length as four bytes, big-endian."""
    parts: list[bytes] = []
    for name, value in headers:
        encoded = name.encode()
        parts += (struct.pack(">I", len(encoded)), encoded, struct.pack(">I", len(value)), value)
    return b"".join(parts)


def unpack(packed: bytes) -> Headers:
    """Unpack headers. For bytes that `pack` did not write, return an UNREADABLE_HEADER and the bytes."""
    try:
        strings = _strings(packed)
        return tuple((name.decode(), value) for name, value in zip(strings[::2], strings[1::2], strict=True))
    except (ValueError, struct.error) as error:
        return ((UNREADABLE_HEADER, f"headers: {error}".encode()), ("block", packed))


def _strings(packed: bytes) -> list[bytes]:
    strings = []
    at = 0
    while at < len(packed):
        (length,) = struct.unpack_from(">I", packed, at)
        if at + 4 + length > len(packed):
            raise ValueError(f"{length} bytes where {len(packed) - at - 4} are left")
        strings.append(packed[at + 4 : at + 4 + length])
        at += 4 + length
    return strings
