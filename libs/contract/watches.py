"""What a watch is: a view of records that is kept up to date, in messages.

The first message begins a view: with `reset`, anew, so whoever has an older view throws it away; else it goes on where
the resume token says. A message brings records as their newest write left them (`items`), and the keys of records that
are deleted, or do not match what is asked for (`removed`); of those some may never have been shown. `synced`: with this
message the view is complete, as of a moment after the one before it was sent.

* It is level-triggered: of several writes of one record the last one is shown, the others may be. A record may be shown
  again without a write. Records come in no order, the versions of one record in theirs: within a view none goes back.
* `resume_token` names a place at one store, since each store sees every change, its own and the other's, in an order of
  its own. Given to the same store it goes on there and nothing is missed or sent again as a whole; given to the other
  one, or for a place that the store does not know any more, it begins a new view. It is empty while a new view is not
  complete: what was begun is begun again.
* A message without records comes at least every HEARTBEAT_SECONDS and brings a newer token.
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

MAX_TOKEN_CHARACTERS = 16 * 1024
"""A place may have to name the transactions that were under way."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a watch stands, at one store. `at`: in the words of that store's port."""

    store: Store
    at: str


@dataclass(frozen=True, slots=True)
class Step:
    """One message."""

    items: Sequence[bytes] = ()
    removed: Sequence[str] = ()
    place: Place | None = None
    """None: a new view is not complete yet."""
    reset: bool = False
    synced: bool = False


def shape_of(method: Method) -> WatchShape:
    if method.watch is None:
        raise ValueError(f"{method.path} is not a watch")
    return method.watch


def make_token(place: Place | None, question: bytes) -> str:
    """`question`: the hash that `Method.watched` gave."""
    if place is None:
        return ""
    data = question + place.store.value.encode() + place.at.encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_token(token: str, question: bytes, field: str) -> Place | None:
    """None for no token. Raises InvalidField."""
    if not token:
        return None
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidField(field, f"{len(token)} characters", f"at most {MAX_TOKEN_CHARACTERS} characters")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        text = data[HASH_BYTES:].decode()
        place = Place(Store(text[:1]), text[1:])
    except ValueError:
        # Of what is not base64, not ASCII, not UTF-8, or names no store.
        raise InvalidField(field, token, f"give back the {field} of a former answer as it was") from None
    if data[:HASH_BYTES] != question:
        raise InvalidField(field, token, "the token belongs to a watch with another filter")
    return place


def place_of(method: Method, request: Message) -> Place | None:
    """Where a watch is to go on. Raises InvalidField."""
    token, question = method.watched(request)
    return read_token(token, question, shape_of(method).resume_token)


def frame(method: Method, step: Step, question: bytes) -> bytes:
    """The message. Items go in as they are, whatever a newer contract put into them."""
    shape = shape_of(method)
    reply = method.reply_class()
    getattr(reply, shape.removed).extend(step.removed)
    setattr(reply, shape.resume_token, make_token(step.place, question))
    setattr(reply, shape.reset, step.reset)
    setattr(reply, shape.synced, step.synced)
    parts = [part for item in step.items for part in (shape.items_tag, varint(len(item)), item)]
    return b"".join([*parts, reply.SerializeToString()])
