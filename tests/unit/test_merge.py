"""Two stores' pages become one, and nothing acknowledged is missed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.contract.descriptors import ListShape, length_delimited
from libs.contract.schemas import SchemaUnknown
from libs.ownership.model import Version
from libs.pb.sandbox.v1 import sandbox_pb2, sandbox_service_pb2
from services.router.core.merge import HalfPage, Item, Merged, frame, merge, unknown_names

NAMES = st.text("abcdeé\U0001f600", min_size=1, max_size=3)
ROWS = st.dictionaries(NAMES, st.tuples(st.integers(1, 3), st.booleans()), max_size=12)


def item(name: str, revision: int, matches: bool) -> Item:
    return Item(Version(0, revision), matches, f"{name}@{revision}".encode() if matches else b"")


def page_of(rows: dict[str, Item], after: str, limit: int, looks: int) -> HalfPage:
    """As a store answers: the matching rows after a name, and whether there may be more. When it has looked at so many
    rows, the page ends at the next one that does not match."""
    shown: dict[str, Item] = {}
    for number, name in enumerate(name for name in sorted(rows) if name > after):
        if len(shown) == limit:
            return HalfPage(shown, full=True)
        if rows[name].matches:
            shown[name] = rows[name]
        elif number >= looks:
            return HalfPage({**shown, name: rows[name]}, full=True)
    return HalfPage(shown, full=False)


def walk(a: dict[str, Item], b: dict[str, Item], limit: int, looks: tuple[int, int] = (99, 99)) -> list[bytes]:
    """All pages, as the router asks for them."""
    items: list[bytes] = []
    resume: str | None = ""
    while resume is not None:
        halves = page_of(a, resume, limit, looks[0]), page_of(b, resume, limit, looks[1])
        looked_up = {name: a[name] for name in unknown_names(*halves) if name in a}
        looked_up |= {name: b[name] for name in unknown_names(halves[1], halves[0]) if name in b}
        merged = merge(*halves, looked_up, limit, 1 << 20)
        assert len(merged.items) <= limit
        assert merged.resume is None or merged.resume > resume, "each page goes forward"
        items += merged.items
        resume = merged.resume
    return items


@given(ROWS, ROWS, st.integers(1, 5))
def test_all_pages_together_show_each_name_once_as_its_newest_row_says(
    a: dict[str, tuple[int, bool]], b: dict[str, tuple[int, bool]], limit: int
) -> None:
    # One version of a name has one content, so equal versions have equal verdicts.
    b = {name: a[name] if name in a and a[name][0] == row[0] else row for name, row in b.items()}
    at_a = {name: item(name, *row) for name, row in a.items()}
    at_b = {name: item(name, *row) for name, row in b.items()}
    newest = {name: max(rows[name] for rows in (at_a, at_b) if name in rows) for name in {*a, *b}}
    expected = [newest[name].data for name in sorted(newest) if newest[name].matches]
    assert walk(at_a, at_b, limit) == expected
    for looks in ((0, 0), (0, 3), (2, 1)):
        assert walk(at_a, at_b, limit, looks) == expected, "whatever each store looks at for one page"


def test_a_row_that_matches_at_the_store_that_lost_the_record_is_not_shown() -> None:
    a = HalfPage({"x": item("x", 1, True)}, full=False)
    b = HalfPage({}, full=False)
    assert unknown_names(b, a) == ["x"]
    assert merge(a, b, {"x": item("x", 2, False)}, 10, 1 << 20) == Merged([], None)


def test_a_page_ends_where_one_store_is_not_known_any_more() -> None:
    a = HalfPage({"a": item("a", 1, True), "b": item("b", 1, True)}, full=True)
    b = HalfPage({"c": item("c", 1, True)}, full=False)
    assert unknown_names(a, b) == [], "c lies beyond what A has told"
    assert merge(a, b, {}, 10, 1 << 20) == Merged([b"a@1", b"b@1"], "b")


def test_a_page_ends_before_it_is_too_large_but_never_empty() -> None:
    large = Item(Version(0, 1), True, b"x" * 600)
    halves = HalfPage({"a": large, "b": large}, full=False), HalfPage({}, full=False)
    assert merge(*halves, {}, 10, 1000) == Merged([large.data], "a")
    assert merge(*halves, {}, 10, 100) == Merged([large.data], "a")


@given(st.lists(st.text(max_size=300), max_size=5), st.text("abc", max_size=200))
def test_a_framed_reply_is_what_protobuf_would_have_written(names: list[str], token: str) -> None:
    shape = ListShape(length_delimited(1), length_delimited(2), "", "", 1, 1, "items")
    sandboxes = [sandbox_pb2.Sandbox(name=name) for name in names]
    data = frame(shape, [sandbox.SerializeToString() for sandbox in sandboxes], token)
    expected = sandbox_service_pb2.ListSandboxesResponse(sandboxes=sandboxes, next_page_token=token)
    assert sandbox_service_pb2.ListSandboxesResponse.FromString(data) == expected


def test_of_one_version_the_row_counts_that_its_store_understands() -> None:
    opaque, shown = Item(Version(0, 2), False, b"", unknown_schema=3), item("a", 2, True)
    for one, other in ((opaque, shown), (shown, opaque)):
        assert merge(HalfPage({"a": one}, False), HalfPage({"a": other}, False), {}, 10, 1000) == Merged([b"a@2"], None)
    for one, other in ((opaque, item("a", 2, False)), (item("a", 2, False), opaque)):
        assert merge(HalfPage({"a": one}, False), HalfPage({"a": other}, False), {}, 10, 1000) == Merged([], None)


def test_of_one_version_the_verdict_counts_of_the_store_that_understood_it_when_it_came() -> None:
    """The other one has been given the newer program since, and keeps nothing by which a filter finds the record."""
    later, here = HalfPage({}, full=False), HalfPage({"x": item("x", 1, True)}, full=False)
    missed = {"x": item("x", 1, False)}
    for halves in ((later, here), (here, later)):
        assert merge(*halves, missed, 5, 1 << 20).items == [b"x@1"]
    for halves in ((HalfPage(missed, full=False), here), (here, HalfPage(missed, full=False))):
        assert merge(*halves, {}, 5, 1 << 20).items == [b"x@1"]


def test_a_record_whose_newest_version_nobody_understands_is_named_not_left_out() -> None:
    opaque = Item(Version(0, 3), False, b"", unknown_schema=3)
    with pytest.raises(SchemaUnknown, match="record 'a' has schema version 3"):
        merge(HalfPage({"a": opaque}, False), HalfPage({"a": item("a", 2, True)}, False), {}, 10, 1000)
