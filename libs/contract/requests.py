"""Parsing of requests, with the same error everywhere."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from libs.errors import InvalidField

M = TypeVar("M", bound=Message)


def parse_request(kind: type[M], data: bytes) -> M:
    """Raises InvalidField if the bytes are not such a message."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        expected = f"a serialized {kind.DESCRIPTOR.full_name} with texts in UTF-8 ({error})"
        raise InvalidField("request", f"{len(data)} bytes", expected) from None
