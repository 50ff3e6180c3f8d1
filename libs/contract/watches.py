"""Watches: a stream of messages that keeps a view of records up to date.

A message has `items` (records after their newest write) and `removed` (keys of records that are deleted or do not
match; some may never have been shown). `reset` begins a new view: the client discards the old one. Without it, the view
continues from the resume token. `synced`: the view is complete as of a moment after the previous message was sent.

* Watches are level-triggered: the last of several writes is shown, earlier ones may be skipped, and a record may be
  re-sent without a write. Records come in no order, but within a view no record goes backwards.
* `resume_token` is a position at one store, since each store sees all changes in an order of its own. At the same
  store, the watch continues without gaps and without a new view. At the other store, or from a position that the store
  no longer has, a new view begins. The token is empty until a new view is complete: an interrupted view starts over.
* A message without records comes at least every HEARTBEAT_SECONDS, with a newer token.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from libs.contract.descriptors import Method, WatchShape, varint
from libs.contract.pages import HASH_BYTES
from libs.errors import InvalidField
from libs.ownership.model import Store

HEARTBEAT_SECONDS = 5.0

_MARK = "~"
"""Stands before and after a mark in a token. No position begins with it."""

MAX_TOKEN_CHARACTERS = 16 * 1024
"""A position may have to list the transactions that were in progress."""


@dataclass(frozen=True, slots=True)
class WatchPosition:
    """Position of a watch at one store. `at` is in the format of that store's port."""

    store: Store
    at: str
    mark: str = ""
    """The accounts of the view (`Scope.mark`); "" if it is not restricted to some."""


@dataclass(frozen=True, slots=True)
class Step:
    """One message of a watch."""

    items: Sequence[bytes] = ()
    removed: Sequence[str] = ()
    position: WatchPosition | None = None
    """None while a new view is incomplete."""
    reset: bool = False
    synced: bool = False


def shape_of(method: Method) -> WatchShape:
    if method.watch is None:
        raise ValueError(f"{method.path} is not a watch")
    return method.watch


def make_token(position: WatchPosition | None, question: bytes) -> str:
    """`question`: the hash that `Method.watched` returns."""
    if position is None:
        return ""
    mark = f"{_MARK}{position.mark}{_MARK}" if position.mark else ""
    data = question + f"{position.store.value}{mark}{position.at}".encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_token(token: str, question: bytes, field: str) -> WatchPosition | None:
    """The position in the token; None for an empty token. Raises InvalidField."""
    if not token:
        return None
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidField(field, f"{len(token)} characters", f"at most {MAX_TOKEN_CHARACTERS} characters")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        text = data[HASH_BYTES:].decode()
        mark, at = text[2:].split(_MARK, 1) if text[1:2] == _MARK else ("", text[1:])
        position = WatchPosition(Store(text[:1]), at, mark)
    except ValueError:
        # The token is not base64, not ASCII, not UTF-8, or names no store; or its mark has no end.
        raise InvalidField(field, token, f"give back the {field} of an earlier answer unchanged") from None
    if data[:HASH_BYTES] != question:
        raise InvalidField(field, token, "the token belongs to a watch with another filter")
    return position


def position_of(method: Method, request: Message) -> WatchPosition | None:
    """The position at which a watch continues. Raises InvalidField."""
    token, question = method.watched(request)
    return read_token(token, question, shape_of(method).resume_token)


def frame(method: Method, step: Step, question: bytes) -> bytes:
    """Serialize the message. Items are inserted unchanged, so fields of a newer contract survive."""
    shape = shape_of(method)
    reply = method.reply_class()
    getattr(reply, shape.removed).extend(step.removed)
    setattr(reply, shape.resume_token, make_token(step.position, question))
    setattr(reply, shape.reset, step.reset)
    setattr(reply, shape.synced, step.synced)
    parts = [part for item in step.items for part in (shape.items_tag, varint(len(item)), item)]
    return b"".join([*parts, reply.SerializeToString()])
