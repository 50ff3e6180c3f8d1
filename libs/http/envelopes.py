"""Length-prefixed messages of gRPC, gRPC-Web and Connect streams: one byte of flags, four bytes of length (big-endian),
the message.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message".
"""

from __future__ import annotations

import struct

from libs.errors import InvalidField
from libs.http.errors import BodyTooLarge

_HEAD = struct.Struct(">BI")
HEAD_BYTES = _HEAD.size
_COMPRESSED = 0x01


def pack(message: bytes, flags: int = 0) -> bytes:
    return _HEAD.pack(flags, len(message)) + message


def unpack_one(body: bytes, limit: int) -> bytes:
    """The single message of a request, of at most `limit` bytes. Raises InvalidField, BodyTooLarge."""
    if not body:
        raise InvalidField("body", "no message", "one message of this method")
    if len(body) < HEAD_BYTES:
        raise InvalidField("body", f"{len(body)} bytes", f"a message after its {HEAD_BYTES} bytes of flags and length")
    flags, length = _HEAD.unpack_from(body)
    if flags & _COMPRESSED:
        raise InvalidField("flags of the message", flags, "0: no encoding was negotiated, so it cannot be compressed")
    if flags:
        raise InvalidField("flags of the message", flags, "0: a request has only messages")
    if length > limit:
        raise BodyTooLarge(limit)
    found = len(body) - HEAD_BYTES
    if found < length:
        raise InvalidField("body", f"{found} bytes of a message", f"the {length} bytes that its length announces")
    if found > length:
        raise InvalidField("body", f"{found - length} bytes after the message", "one message of this method")
    return body[HEAD_BYTES:]
