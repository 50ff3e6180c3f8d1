"""Encodings of a call's messages: protobuf, or proto3 JSON in the caller's schema version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from libs.contract.descriptors import Method
from libs.http.gateway import Gateway
from libs.http.json_body import read_message, serialized, write_message

PROTO, JSON = "proto", "json"


def _same(data: bytes) -> bytes:
    return data


@dataclass(frozen=True, slots=True)
class Codec:
    read: Callable[[bytes], bytes] = _same
    """Convert a request's body to the serialized message. Raises InvalidField."""
    write: Callable[[bytes], bytes] = _same
    """Convert the serialized reply to a response body."""
    growth: int = 1
    """Factor by which a body may be longer than its serialized message."""


SERIALIZED = Codec()


def codec_of(name: str, gateway: Gateway, method: Method, schema: int) -> Codec:
    """`name`: PROTO or JSON."""
    if name == PROTO:
        # The handler parses the message in the caller's schema version, as it does for gRPC.
        return SERIALIZED
    request, reply = gateway.forms.request(method, schema), gateway.forms.reply(method, schema)

    def read(data: bytes) -> bytes:
        message = request()
        read_message(data, message)
        return serialized(message)

    return Codec(read, lambda data: write_message(reply.FromString(data)), growth=2)
