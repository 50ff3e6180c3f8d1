"""Filters of lists and their matches."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.contract.pages import Filter
from libs.errors import InvalidField
from libs.ownership.model import Row, Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.filter import format_filter, parse_filter
from libs.sandboxes.transitions import NUMBERS
from libs.store.columns import Columns
from libs.store.columns import matches as verdict
from tests.unit.sandboxes import a_sandbox

keys = st.from_regex(r"[a-z0-9._/-]{1,63}", fullmatch=True)
values = st.from_regex(r"[a-z0-9._/-]{0,63}", fullmatch=True)
accounts = st.from_regex(r"[A-Za-z0-9._@-]{1,64}", fullmatch=True)
equals = st.fixed_dictionaries({}, optional={"state": st.sampled_from([*NUMBERS]), "account": accounts})
filters = st.builds(
    lambda columns, labels: Filter(tuple(columns.items()), tuple(labels.items())),
    equals,
    st.dictionaries(keys, values, max_size=4),
)


@given(filters)
def test_a_filter_that_is_written_down_is_read_as_the_same(query: Filter) -> None:
    assert parse_filter(format_filter(query)) == query


@given(filters, st.lists(st.sampled_from(["", " ", "   "]), min_size=4, max_size=4))
def test_spaces_do_not_matter(query: Filter, spaces: list[str]) -> None:
    text = format_filter(query).replace(" = ", f"{spaces[0]}={spaces[1]}").replace(" AND ", f"{spaces[2]} AND ")
    assert parse_filter(spaces[3] + text + spaces[0]) == query


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Filter()),
        ("   ", Filter()),
        ("state = RUNNING", Filter((("state", "RUNNING"),))),
        ('account = "ann@example"', Filter((("account", "ann@example"),))),
        ('labels.team/app.x-1 = ""', Filter((), (("team/app.x-1", ""),))),
        (
            'labels.a = "1" AND state = FAILED AND labels.b = "2"',
            Filter((("state", "FAILED"),), (("a", "1"), ("b", "2"))),
        ),
    ],
)
def test_what_the_contract_documents_is_understood(text: str, query: Filter) -> None:
    assert parse_filter(text) == query


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("name = 1", 1, "a term: state"),
        ("state = BROKEN", 9, "one of PENDING, RUNNING, STOPPED, FAILED"),
        ("state = UNSPECIFIED", 9, "one of PENDING"),
        ("state = running", 9, "one of PENDING"),
        ('state = "RUNNING"', 9, "one of PENDING"),
        ("state = RUNNINGAND", 9, "one of PENDING"),
        ("state != RUNNING", 1, "a term"),
        ("account = ann", 11, "double quotes"),
        ('account = "ann', 11, "double quotes"),
        ('account = "a\\"n"', 11, "double quotes"),
        ('labels.A = "x"', 1, "a term"),
        ('labels. = "x"', 1, "a term"),
        ('state = RUNNING account = "a"', 16, "AND and another term, or the end"),
        ('state = RUNNING and account = "a"', 16, "AND and another term, or the end"),
        ('state = RUNNING OR account = "a"', 16, "AND and another term"),
        ("state = RUNNING AND", 16, "AND and another term"),
        ("state = RUNNING AND ", 21, "a term"),
        ("AND state = RUNNING", 1, "a term"),
        ("(state = RUNNING)", 1, "a term"),
        ("state = RUNNING AND state = FAILED", 21, "another field: state is there already"),
        ('labels.a = "1" AND  labels.a = "2"', 21, "another field: labels.a is there already"),
        ("state\n= RUNNING", 1, "a term"),
        ("state = RUNNING\n", 16, "AND"),
    ],
)
def test_anything_else_is_refused_with_its_place(text: str, position: int, expected: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_filter(text)
    assert caught.value.field == "filter"
    assert f"at character {position} it must have " in caught.value.expected
    assert expected in caught.value.expected


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('account = "a b"', "filter account"),
        ('account = ""', "filter account"),
        ('labels.a = "B"', "filter labels['a']"),
        (f'labels.{"k" * 64} = "b"', "filter labels key"),
        (f'account = "{"a" * 9000}"', "filter"),
    ],
)
def test_a_value_that_no_sandbox_can_have_is_refused(text: str, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_filter(text)
    assert caught.value.field == field


@given(st.text(max_size=60) | st.text("states=RUNIG ANDlabels.account\"'", max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    with suppress(InvalidField):
        query = parse_filter(text)
        assert parse_filter(format_filter(query)) == query


def test_deleted_ones_are_asked_for_beside_the_filter() -> None:
    assert parse_filter("", show_deleted=True) == Filter(show_deleted=True)


def a_row(payload: bytes) -> Row:
    return Row("sandboxes/one", Version(0, 1), Store.A, Version(0, 1), live=True, payload=payload, schema_version=2)


def test_the_columns_of_a_row_are_those_that_a_filter_names() -> None:
    row = a_row(a_sandbox(state=Sandbox.STATE_STOPPED).SerializeToString())
    assert sandbox_columns(row) == Columns({"state": "STOPPED", "account": "ann@example"}, {"team": "blue"})
    assert sandbox_columns(a_row(a_sandbox(state=42).SerializeToString())).equals["state"] == "42"


@pytest.mark.parametrize("account", ["a\0b", "x" * 5000])
def test_what_no_filter_can_ask_for_and_not_every_database_can_keep_is_left_out(account: str) -> None:
    sandbox = a_sandbox(state=Sandbox.STATE_STOPPED, account=account, labels={"team": "blue", "a\0b": "1", "c": "1\0"})
    assert sandbox_columns(a_row(sandbox.SerializeToString())) == Columns({"state": "STOPPED"}, {"team": "blue"})


@pytest.mark.parametrize("payload", [b"", b"\xff"], ids=["stub", "unreadable"])
def test_a_row_without_a_readable_payload_has_no_columns(payload: bytes) -> None:
    assert sandbox_columns(a_row(payload)) == Columns()


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("state = STOPPED", True),
        ("state = RUNNING", False),
        ('account = "ann@example" AND labels.team = "blue"', True),
        ('account = "ann"', False),
        ('labels.team = "red"', False),
        ('labels.other = ""', False),
    ],
)
def test_a_filter_finds_what_has_all_of_it(text: str, matches: bool) -> None:
    row = a_row(a_sandbox(state=Sandbox.STATE_STOPPED).SerializeToString())
    assert verdict(row, sandbox_columns(row), parse_filter(text)) is matches
