"""Tokens and messages of watches."""

from __future__ import annotations

import base64

import pytest

from libs.contract.watches import MAX_TOKEN_CHARACTERS, Step, WatchPosition, frame, make_token, position_of, read_token
from libs.errors import InvalidField
from libs.ownership.model import Store
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.shelf import CONTRACT

QUESTION = b"12345678"
FOLLOW = CONTRACT.methods["Follow"]


@pytest.mark.parametrize(
    "position",
    [None, WatchPosition(Store.A, "of/7"), WatchPosition(Store.B, "x-1/10:12:10,11"), WatchPosition(Store.B, "")],
)
def test_a_token_says_its_place(position: WatchPosition | None) -> None:
    assert read_token(make_token(position, QUESTION), QUESTION, "where") == position


def test_a_token_that_is_too_long_is_refused_unread() -> None:
    longest = WatchPosition(Store.A, "x" * (MAX_TOKEN_CHARACTERS * 3 // 4 - len(QUESTION) - 1))
    assert read_token(make_token(longest, QUESTION), QUESTION, "where") == longest
    with pytest.raises(InvalidField, match="at most"):
        read_token(make_token(WatchPosition(Store.A, longest.at + "x"), QUESTION), QUESTION, "where")


@pytest.mark.parametrize("data", [b"", b"\xff", QUESTION, QUESTION + b"C", QUESTION + b"A\xff"])
def test_what_names_no_place_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidField, match="where"):
        read_token(base64.urlsafe_b64encode(data).decode() or "=", QUESTION, "where")


def test_a_message_keeps_each_item_as_it_is_and_its_token_leads_on() -> None:
    order = pb.FollowOrder(reader="ann")
    _, question = FOLLOW.watched(order)
    unknown = pb.Book(path="shelf/r/1").SerializeToString() + b"\xa2\x7d\x03new"
    position = WatchPosition(Store.B, "of/7")
    data = frame(FOLLOW, Step([unknown, b""], ["shelf/r/2"], position, reset=True, synced=True), question)
    news = pb.News.FromString(data)
    assert [book.SerializeToString() for book in news.books] == [unknown, b""]
    assert (list(news.gone), news.anew, news.all) == (["shelf/r/2"], True, True)
    order.where = news.where
    assert position_of(FOLLOW, order) == position
