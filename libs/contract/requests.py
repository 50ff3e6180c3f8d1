"""Reading a request: the same refusal wherever it is read."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from libs.errors import InvalidField

M = TypeVar("M", bound=Message)


def parse_request(kind: type[M], data: bytes) -> M:
    """Raises InvalidField when the bytes are no such message."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        expected = f"a serialized {kind.DESCRIPTOR.full_name} with texts in UTF-8 ({error})"
        raise InvalidField("request", f"{len(data)} bytes", expected) from None
