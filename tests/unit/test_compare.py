"""Comparing two stores' answers: the fields that differ, and the kind of difference by versions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from libs.contract.descriptors import Contract
from libs.contract.unfit import UnfitContract
from libs.ownership.model import NEVER, Store, Version
from libs.pb.sandbox.v1 import sandbox_pb2
from services.router.core.compare import (
    FILTER,
    MAX_FIELDS,
    STATUS,
    UNKNOWN_FIELDS,
    UNREADABLE,
    Comparison,
    Kind,
    ShownRecord,
    gravest,
    pairs_of,
    seen_of,
)
from services.router.core.merge import HalfPage, Item
from services.router.core.tally import Difference, Side, Tally, hashed
from tests.contracts.pb.toy import shelf_pb2 as pb

SHELF = Contract.of(pb.DESCRIPTOR.services_by_name["Shelf"])
V1, V2, V3 = Version(0, 1), Version(0, 2), Version(0, 3)


def sandbox(**fields: Any) -> sandbox_pb2.Sandbox:
    return sandbox_pb2.Sandbox(name="sandboxes/x", **fields)


def differing(one: sandbox_pb2.Sandbox, other: sandbox_pb2.Sandbox, *ignored: str) -> tuple[str, ...]:
    comparison = Comparison(sandbox_pb2.Sandbox, ignored)
    return comparison.fields(ShownRecord(V1, one.SerializeToString()), ShownRecord(V1, other.SerializeToString()))


@pytest.mark.parametrize(
    ("one", "other", "paths"),
    [
        (sandbox(), sandbox(), ()),
        (sandbox(account="a"), sandbox(account="b"), ("account",)),
        (sandbox(account="a", revision=1), sandbox(account="b", revision=2), ("account", "revision")),
        (sandbox(state=1), sandbox(state=2), ("state",)),
        (sandbox(labels={"secret": "1"}), sandbox(labels={"secret": "2"}), ("labels",)),
        (sandbox(labels={"one": "1"}), sandbox(labels={"other": "1"}), ("labels",)),
        (sandbox(labels={"a": "1", "b": "2"}), sandbox(labels={"b": "2", "a": "1"}), ()),
        (sandbox(spec={"image": "a"}), sandbox(spec={"image": "b"}), ("spec.image",)),
        (sandbox(spec={"command": ["a"]}), sandbox(spec={"command": ["a", "b"]}), ("spec.command",)),
        (sandbox(spec={}), sandbox(), ("spec",)),
        (sandbox(update_time={"seconds": 1}), sandbox(update_time={"seconds": 2}), ("update_time.seconds",)),
    ],
)
def test_the_paths_of_what_differs_are_named_without_keys_and_positions(
    one: sandbox_pb2.Sandbox, other: sandbox_pb2.Sandbox, paths: tuple[str, ...]
) -> None:
    assert differing(one, other) == paths
    assert differing(other, one) == paths


def test_replies_that_hold_the_same_in_other_bytes_do_not_differ() -> None:
    one, other = sandbox().SerializeToString(), sandbox_pb2.Sandbox(account="a").SerializeToString()
    comparison = Comparison(sandbox_pb2.Sandbox, ())
    assert comparison.fields(ShownRecord(V1, one + other), ShownRecord(V1, other + one)) == ()


def test_unknown_fields_are_compared_too() -> None:
    plain, unknown = sandbox().SerializeToString(), pb.BrowseOrder(most=3).SerializeToString()
    comparison = Comparison(sandbox_pb2.Sandbox, ())
    assert comparison.fields(ShownRecord(V1, plain), ShownRecord(V1, plain + unknown)) == (UNKNOWN_FIELDS,)
    assert comparison.fields(ShownRecord(V1, plain + unknown), ShownRecord(V1, unknown + plain)) == ()


def test_what_is_not_a_reply_is_a_difference_unless_both_are_the_same() -> None:
    comparison = Comparison(sandbox_pb2.Sandbox, ())
    assert comparison.fields(ShownRecord(V1, b"\xff"), ShownRecord(V1, b"")) == (UNREADABLE,)
    assert comparison.fields(ShownRecord(V1, b"\xff"), ShownRecord(V1, b"\xff")) == ()


def test_ignored_fields_are_left_out_wherever_they_stand() -> None:
    old = sandbox(update_time={"seconds": 1}, spec={"image": "a", "timeout": {"seconds": 1}})
    new = sandbox(update_time={"seconds": 2}, spec={"image": "a", "timeout": {"seconds": 2}})
    assert differing(old, new, "update_time", "spec.timeout.seconds") == ()
    assert differing(old, new, "update_time") == ("spec.timeout.seconds",)
    assert differing(sandbox(), sandbox(spec={}), "spec.timeout") == ("spec",), "clearing does not make a message"


def test_an_ignored_field_of_a_lists_items_is_left_out_of_each_item() -> None:
    browse = dataclasses.replace(SHELF.methods["Browse"], ignored_reply_fields=("found.lent", "more"))
    one, other = (pb.Book(path="p", lent=lent).SerializeToString() for lent in (1, 2))
    assert Comparison.of(browse).fields(ShownRecord(V1, one), ShownRecord(V1, other)) == ()
    assert Comparison.of(SHELF.methods["Browse"]).fields(ShownRecord(V1, one), ShownRecord(V1, other)) == ("lent",)
    books = [pb.Books(found=[pb.Book(path="p", lent=lent)]).SerializeToString() for lent in (1, 2)]
    whole = Comparison(pb.Books, ("found.lent",))
    assert whole.fields(ShownRecord(V1, books[0]), ShownRecord(V1, books[1])) == ()


@pytest.mark.parametrize("path", ["color", "found.color", "found.path.more", "", "found."])
def test_an_ignored_field_that_the_reply_does_not_have_is_refused_at_the_start(path: str) -> None:
    with pytest.raises(UnfitContract, match="ignored_reply_fields"):
        Comparison(pb.Books, (path,))


def test_errors_are_the_same_by_code_and_reason() -> None:
    comparison = Comparison(pb.Book, ())
    none, other, reply = (
        ShownRecord(V1, status="NOT_FOUND/A"),
        ShownRecord(V1, status="NOT_FOUND/B"),
        ShownRecord(V1, b""),
    )
    assert comparison.sight(none, none).kind is Kind.MATCH
    assert comparison.sight(none, other).kind is Kind.MISMATCH
    assert (comparison.sight(none, reply).kind, comparison.sight(none, reply).fields) == (Kind.MISMATCH, (STATUS,))


@pytest.mark.parametrize(
    ("one", "other", "due", "kind"),
    [
        (V2, V2, None, Kind.MISMATCH),
        (V2, V2, V3, Kind.MISMATCH),
        (V2, V1, None, Kind.STALE),
        (V1, V2, None, Kind.STALE),
        (V2, V1, V1, Kind.STALE),
        (V3, V2, V2, Kind.STALE),
        (V2, V1, V2, Kind.MISSING),
        (V2, NEVER, V1, Kind.MISSING),
        (NEVER, V2, None, Kind.STALE),
        (None, V2, None, Kind.MISMATCH),
        (V2, None, V2, Kind.MISMATCH),
        (Version(2, 1), Version(0, 9), Version(2, 1), Kind.MISSING),
    ],
)
def test_versions_say_what_a_difference_is(
    one: Version | None, other: Version | None, due: Version | None, kind: Kind
) -> None:
    comparison = Comparison(pb.Book, ())
    books = [pb.Book(reader=reader).SerializeToString() for reader in ("ann", "bob")]
    assert comparison.sight(ShownRecord(one, books[0]), ShownRecord(other, books[1]), due).kind is kind
    assert comparison.sight(ShownRecord(one, books[0]), ShownRecord(other, books[0]), due).kind is Kind.MATCH


def test_the_gravest_of_a_pages_rows_counts() -> None:
    assert gravest([]) is Kind.MATCH
    assert gravest([Kind.MATCH, Kind.STALE]) is Kind.STALE
    assert gravest([Kind.MISMATCH, Kind.MISSING, Kind.STALE]) is Kind.MISMATCH


def row(revision: int, data: bytes, *, matches: bool = True) -> Item:
    return Item(Version(0, revision), matches, data)


def test_pages_are_compared_by_name_up_to_where_both_are_known() -> None:
    one = HalfPage({"a": row(1, b"1"), "b": row(1, b"1"), "c": row(1, b"1")}, full=True)
    other = HalfPage({"a": row(1, b"1"), "b": row(1, b"2"), "d": row(1, b"1")}, full=False)
    looked_up = {"c": row(2, b"", matches=False)}
    found = {name: (mine, theirs) for name, mine, theirs in pairs_of(one, other, looked_up)}
    assert set(found) == {"b", "c"}, "a is the same, d is beyond the end of the full page"
    comparison = Comparison(pb.Book, ())
    mine, theirs = map(seen_of, found["c"])
    assert comparison.fields(mine, theirs) == (FILTER,)
    assert seen_of(None) == ShownRecord(NEVER, matches=False)


def test_a_row_that_its_store_does_not_understand_differs_from_nothing() -> None:
    opaque = Item(V2, False, b"", unknown_schema=3)
    one, other = HalfPage({"a": opaque}, full=False), HalfPage({"a": Item(V2, True, b"1")}, full=False)
    assert not list(pairs_of(one, other, {})) and not list(pairs_of(other, one, {}))


def test_two_rows_that_do_not_match_are_the_same_to_a_client() -> None:
    comparison = Comparison(pb.Book, ())
    assert comparison.fields(ShownRecord(V1, matches=False), ShownRecord(NEVER, matches=False)) == ()


def test_no_more_fields_are_named_than_are_kept() -> None:
    spec = {"image": "i", "command": ["c"], "env": {"e": "1"}, "cpu_millis": 1, "memory_mib": 1}
    full = sandbox(state=1, spec=spec, labels={"a": "b"}, annotations={"a": "b"}, account="a", uid="u", etag="e")
    full.MergeFrom(sandbox_pb2.Sandbox(schema_version=2, revision=1, name="other"))
    for name in ("create_time", "update_time", "delete_time"):
        getattr(full, name).FromSeconds(5)
    full.spec.timeout.FromSeconds(5)
    assert len(differing(full, sandbox(spec={"timeout": {"nanos": 1}}))) == MAX_FIELDS


def test_a_hash_tells_contents_apart_only_for_those_who_know_the_secret() -> None:
    one, other = ShownRecord(V1, b"1"), ShownRecord(V1, b"2")
    assert hashed(one, b"s") == hashed(one, b"s") != hashed(other, b"s")
    assert hashed(one, b"s") != hashed(one, b"t")


def test_a_tally_keeps_the_latest_differences_of_each_kind() -> None:
    tally = Tally(run=3, kept=2)
    sides = (Side(Store.A, V1, "1"), Side(Store.B, V1, "2"))
    for number in range(4):
        tally.keep(Difference(number, "get", f"k{number}", Kind.STALE, (), sides, 0.0))
    tally.keep(Difference(9, "get", "bad", Kind.MISMATCH, ("account",), sides, 0.0))
    assert [kept.key for kept in tally.differences[Kind.STALE]] == ["k2", "k3"]
    assert [kept.key for kept in tally.differences[Kind.MISMATCH]] == ["bad"], "many harmless ones do not push it out"


def test_a_tallys_counts_add_up() -> None:
    tally = Tally(run=1, kept=1)
    for kind in Kind:
        tally.count("get", kind)
    tally.count("list", Kind.MATCH)
    tally.dropped["list"] += 2
    counts = tally.counts(tally.operations)
    assert counts.compared == sum(counts) - counts.compared - counts.dropped == 7
    assert (counts.match, counts.dropped) == (2, 2)
    assert tally.counts(["get"]).match == 1


def test_a_row_that_only_ends_a_page_is_not_compared() -> None:
    """The other store need not have it: it may be of a record that never was."""
    one, other = HalfPage({"a": row(3, b"", matches=False)}, full=True), HalfPage({}, full=False)
    assert not list(pairs_of(one, other, {})) and not list(pairs_of(other, one, {}))
