"""Semantics of the toy contract, as a backend runs it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from libs.contract.descriptors import Contract
from libs.contract.operations import CallContext, List, Parsed, Read, Watch, Write
from libs.contract.pages import Filter, Page, read_token
from libs.errors import BatonError, InvalidField
from libs.ownership.model import Answered, Row, Version
from libs.ownership.rules import Change, Resource
from libs.ownership.wire import UnreadableRecord
from libs.store.columns import Columns
from tests.contracts.pb.toy import shelf_pb2 as pb

M = TypeVar("M", bound=Message)

CONTRACT = Contract.of(pb.DESCRIPTOR.services_by_name["Shelf"])


MOST_READER_CHARACTERS = 40


class NoSuchBook(BatonError):
    """There is no such book."""

    code = "NOT_FOUND"
    reason = "NO_SUCH_BOOK"


class BookIsThere(BatonError):
    """The book is on the shelf."""

    code = "ALREADY_EXISTS"
    reason = "BOOK_IS_THERE"


class ShelfOperations:
    service = CONTRACT.service
    methods: Sequence[str] = tuple(CONTRACT.methods)

    def parse(self, method: str, request: bytes, context: CallContext) -> Parsed:
        match method:
            case "Put":
                put = _parsed(pb.PutOrder, request)
                key = f"shelf/{put.where.room}/{put.where.isbn or context.made_id}"
                return Write(key, put.token or context.request_id, _hash(put), lambda row, _: _put(key, row))
            case "Look":
                return Read(_parsed(pb.LookOrder, request).path, _look)
            case "Lend":
                lend = _parsed(pb.LendOrder, request)
                return Write(
                    lend.path,
                    lend.token or context.request_id,
                    _hash(lend),
                    lambda row, version: _lend(lend, row, version),
                )
            case "Follow":
                reader = _parsed(pb.FollowOrder, request).reader
                if len(reader) > MOST_READER_CHARACTERS:
                    raise InvalidField("reader", reader, f"at most {MOST_READER_CHARACTERS} characters")
                return Watch(_of_reader(reader))
        browse = _parsed(pb.BrowseOrder, request)
        size, token, question = CONTRACT.methods["Browse"].page(browse)
        page = Page(_of_reader(browse.reader), read_token(token, question), size)
        return List(page, question, _books)

    def check_row(self, row: Row) -> None:
        """Tests put texts into rows: every row is a book unless it is marked as none."""
        if row.payload.startswith(b"\xff"):
            raise UnreadableRecord("payload: it is no book", field="payload")

    def replaced(self, key: str, content: Resource, now_seconds: float, *, as_kept: bool) -> Change:
        return lambda row, version: content

    def written_seconds(self, row: Row) -> float | None:
        return None


def shelf_columns(row: Row) -> Columns:
    try:
        return Columns({"reader": pb.Book.FromString(row.payload).reader})
    except DecodeError:
        return Columns()


def _of_reader(reader: str) -> Filter:
    return Filter(equals=(("reader", reader),) if reader else ())


def _parsed(kind: type[M], request: bytes) -> M:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise InvalidField("request", request, kind.__name__) from None


def _hash(message: Message) -> bytes:
    return blake2b(message.SerializeToString(deterministic=True), digest_size=16).digest()


def _put(key: str, row: Row | None) -> Resource | Answered:
    if row is not None and row.live:
        raise BookIsThere
    return Resource(pb.Book(path=key).SerializeToString(), live=True, schema_version=1)


def _look(row: Row | None) -> bytes:
    if row is None or not row.live:
        raise NoSuchBook
    return row.payload


def _lend(order: pb.LendOrder, row: Row | None, version: Version) -> Resource | Answered:
    if (row is None or not row.live) and not order.buy:
        raise NoSuchBook
    book = pb.Book.FromString(row.payload) if row is not None else pb.Book(path=order.path)
    book.reader = order.reader
    book.lent = version.revision
    return Resource(book.SerializeToString(), live=True, schema_version=1)


def _books(payloads: Sequence[bytes], token: str) -> bytes:
    return pb.Books(found=[pb.Book.FromString(payload) for payload in payloads], more=token).SerializeToString()
