"""Every decoder of foreign bytes refuses malformed input by its own error, and by no other.

`make test` tries some hundred examples of each, `make fuzz` many thousand.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import example, given
from hypothesis import strategies as st
from openfeature.exception import OpenFeatureError

from libs.clock import ManualClock
from libs.contract.descriptors import Contract
from libs.contract.pages import make_token, read_token
from libs.contract.watches import WatchPosition
from libs.contract.watches import make_token as make_resume_token
from libs.contract.watches import read_token as read_resume_token
from libs.errors import BatonError, InvalidField
from libs.eventlog.cloudevents import HeadersInvalid, HeaderWriter, read_headers
from libs.eventlog.headers import pack, unpack
from libs.eventlog.port import Event
from libs.eventlog.sqlite import SqliteEventLog
from libs.flags.flagd import FlagdFileProvider
from libs.flags.port import FlagsUnavailable
from libs.ownership.limits import MAX_REVISION
from libs.ownership.model import Store
from libs.ownership.wire import UnreadableRecord, check_versions, read_bulk, read_event
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.sandboxes import masks
from libs.sandboxes.filter import format_filter, parse_filter
from libs.sandboxes.operations import SandboxOperations
from libs.settings import WrongSetting, load
from services.router.core.canary import parse_plan
from services.router.settings import RouterSettings

HASH = b"\x01" * 8
LONG_NUMBER = "9" * 5000
"""Python refuses to read a number of so many digits."""

texts = st.text(st.characters(codec="utf-8"), max_size=60)
keys = st.one_of(st.just("sandboxes/one"), texts)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
numbers = st.integers(-(2**63), 2**63 - 1)
versions = st.builds(record_pb2.Version, term=numbers, revision=numbers)
records = st.builds(
    record_pb2.Record,
    key=keys,
    version=versions,
    owner=st.integers(-2, 4),
    write_version=versions,
    live=st.booleans(),
    base=versions,
    bases=st.lists(versions, max_size=3),
    origin=st.integers(-2, 4),
    schema_version=st.integers(-(2**31), 2**31 - 1),
    payload=st.binary(max_size=80)
    | st.builds(
        lambda name, nanos: sandbox_pb2.Sandbox(
            name=name, spec=sandbox_pb2.SandboxSpec(timeout=Duration(nanos=nanos))
        ).SerializeToString(),
        keys,
        st.integers(-(2**31), 2**31 - 1),
    ),
    served=st.lists(
        st.builds(
            record_pb2.ServedRequest,
            principal=texts,
            request_id=texts,
            request_hash=st.binary(max_size=40),
            version=versions,
            answer=st.binary(max_size=20),
        ),
        max_size=3,
    ),
)


@given(key=keys, value=st.binary(max_size=200) | records.map(lambda record: record.SerializeToString()))
def test_an_event_is_a_record_of_its_key_or_unreadable(key: str, value: bytes) -> None:
    try:
        record = read_event(key, value)
        check_versions(record.row)
        SandboxOperations().check_row(record.row)
    except UnreadableRecord:
        return
    assert record.row.key == key


some_numbers = st.lists(st.sampled_from([0, 1, 2, 2**62, -1]), max_size=3)


@given(st.lists(texts, max_size=3), some_numbers, some_numbers, some_numbers, st.binary(max_size=48), st.integers(0, 3))
def test_a_bulk_release_has_entries_that_a_store_can_keep_or_is_unreadable(
    keys: list[str], terms: list[int], revisions: list[int], counts: list[int], requests: bytes, to: int
) -> None:
    message = record_pb2.Record()
    message.origin, message.bulk.to = 3 - to, to  # type: ignore[assignment]
    message.bulk.keys.extend(keys)
    message.bulk.terms.extend(terms)
    message.bulk.revisions.extend(revisions)
    message.bulk.before.extend([7] * len(keys))
    message.bulk.digests.extend([8] * len(keys))
    message.bulk.request_counts.extend(one % 2**31 for one in counts)
    message.bulk.requests = requests
    try:
        bulk = read_bulk(keys[0] if keys else "", message.SerializeToString())
    except UnreadableRecord:
        return
    assert bulk is not None
    assert [one.key for one in bulk.entries] == keys
    assert all(1 < one.version.revision <= MAX_REVISION and one.version.term >= 0 for one in bulk.entries)
    assert b"".join(name for one in bulk.entries for name in one.requests) == requests


header_names = st.sampled_from(
    ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "content-type", "traceparent", "x", ""]
)
header_values = st.binary(max_size=40) | texts.map(str.encode) | st.just(f"k/0.{LONG_NUMBER}".encode())


@given(
    st.lists(st.tuples(header_names, header_values), max_size=9),
    st.sampled_from(["k/1.2", f"k/{LONG_NUMBER}.1", "k/1", "k/²1.1", "k/1.1.1", "k/-1.1"]),
    st.sampled_from(
        ["2026-01-01T00:00:00Z", "2026-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", ""]
    ),
)
@example([], f"k/{LONG_NUMBER}.1", "2026-01-01T00:00:00Z")
def test_headers_are_those_of_an_event_or_invalid(extra: list[tuple[str, bytes]], made_id: str, time: str) -> None:
    good = dict(HeaderWriter("A", "baton.record.v1").write("k", (1, 2), 0.0))
    for found in (extra, [*(good | {"ce_id": made_id.encode(), "ce_time": time.encode()}).items(), *extra]):
        with suppress(HeadersInvalid):
            read_headers(found)


@given(
    st.binary(max_size=60)
    | st.lists(st.integers(0, 2**32 - 1)).map(lambda found: struct.pack(f">{len(found)}I", *found))
)
def test_packed_headers_are_unpacked_or_kept_as_unreadable(packed: bytes) -> None:
    found = unpack(packed)
    assert pack(found) == packed or found[1] == ("block", packed)


sql_values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.binary(max_size=30) | texts


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.integers(-2, 6), sql_values, sql_values, sql_values, sql_values), max_size=4
    )
)
@example([(0, 1, "k", b"v", b"", "yesterday")])
@example([(0, "x", "k", b"v", b"", 0.0)])
def test_a_log_that_another_program_wrote_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.db"
    asyncio.run(_read_written(path, rows))


async def _read_written(path: Path, rows: list[tuple[Any, ...]]) -> None:
    async with SqliteEventLog.open(path, 3, clock=ManualClock()) as log:
        await log.append([Event("k", b"v")])
        connection = sqlite3.connect(path)
        for row in rows:
            with suppress(sqlite3.Error):
                connection.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.execute("UPDATE part SET next = 8")
        connection.commit()
        connection.close()
        with suppress(BatonError):
            async with log.reader({0: 0, 1: 0, 2: 0}) as reader:
                for stored in await reader.poll(100, 0.0):
                    assert isinstance(stored.event.key, str)
                    assert isinstance(stored.event.value, bytes)
                    assert isinstance(stored.time, float)
                    with suppress(HeadersInvalid):
                        read_headers(stored.event.headers)


tokens = texts | st.binary(max_size=80).map(lambda data: base64.urlsafe_b64encode(HASH + data).decode().rstrip("="))


@given(tokens)
def test_a_token_is_one_of_ours_or_refused(token: str) -> None:
    with suppress(InvalidField):
        last = read_token(token, HASH)
        assert read_token(make_token(last, HASH), HASH) == last if last else not token
    with suppress(InvalidField):
        position = read_resume_token(token, HASH, "resume_token")
        assert read_resume_token(make_resume_token(position, HASH), HASH, "resume_token") == position


# No position begins with the mark.
@given(st.sampled_from(list(Store)), texts.filter(lambda at: not at.startswith("~")))
def test_a_resume_token_names_its_position(store: Store, at: str) -> None:
    position = WatchPosition(store, at)
    assert read_resume_token(make_resume_token(position, HASH), HASH, "resume_token") == position


terms = st.sampled_from(
    ["state", "account", "labels.a", "labels.", "x", "=", '"a"', '"', "AND", "RUNNING", " ", "\\", "\0"]
)


@given(texts | st.lists(terms, max_size=12).map(" ".join))
def test_a_filter_is_understood_or_refused(text: str) -> None:
    try:
        found = parse_filter(text)
    except InvalidField:
        return
    assert parse_filter(format_filter(found)) == found


paths = (
    st.sampled_from(["*", "spec", "spec.env", "state", "labels", "name", "uid", "", ".", "spec.", "spec.env.A"]) | texts
)


@given(st.lists(paths, max_size=6), st.binary(max_size=40), st.booleans())
def test_a_mask_selects_or_is_refused(found: list[str], data: bytes, old: bool) -> None:
    source, target = sandbox_pb2.Sandbox(), sandbox_pb2.Sandbox(name="sandboxes/one")
    with suppress(Exception):
        source.MergeFromString(data)
    names = {"image": "spec.image", "env": "spec.env", "state": "state"} if old else None
    with suppress(InvalidField):
        masks.apply(masks.select(found, source, names), target, source)
        assert target.name == "sandboxes/one"


flag_parts = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["ENABLED", "DISABLED", "x", 1, None]),
        "variants": json_values | st.just({"on": True, "off": False}),
        "defaultVariant": json_values | st.just("on"),
        "targeting": json_values | st.just({"if": [{"==": [{"var": "x"}, 1]}, "on", "off"]}),
        "metadata": json_values,
    },
)
flag_files = st.fixed_dictionaries(
    {"flags": st.dictionaries(st.just("f") | texts, flag_parts | json_values, max_size=3) | json_values},
    optional={"$evaluators": json_values, "metadata": json_values},
)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@given(
    st.binary(max_size=60)
    | flag_files.map(_json)
    | st.just(b'{"flags": {"f": ' + b"[" * 5000)
    | st.just(b'{"flags": ' + LONG_NUMBER.encode())
)
def test_a_file_of_flags_is_taken_or_refused_whole(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "flags.json"
    path.write_bytes(text)
    provider = FlagdFileProvider(path)
    try:
        provider.reload()
    except FlagsUnavailable:
        return
    with suppress(OpenFeatureError):
        provider.resolve_boolean_details("f", False)


toml_values = st.sampled_from(
    ["1", "0.1", "1e308", "-1", "nan", "inf", '"a"', "[]", '["lag"]', "[[1]]", "{a = 1}", "true", "2026-01-01",
     "9" * 11, "1" + "0" * 400, LONG_NUMBER, "[" * 3000, "{a=" * 2000]
)  # fmt: skip
toml_keys = st.sampled_from(
    [
        "percent",
        "minimum_seconds",
        "minimum_samples",
        "gates",
        "on_fail",
        "patience_seconds",
        "step",
        "x",
        "step.x",
        "a.b",
    ]
)
toml_lines = st.builds("{} = {}".format, toml_keys, toml_values) | st.sampled_from(
    ["[[step]]", "[step]", "[x]", "=", "#"]
)
toml_texts = texts | st.lists(toml_lines, max_size=6).map("\n".join)


@given(toml_texts)
@example("[[step]]\npercent = 1e308")
@example("[[step]]\npercent = 1" + "0" * 400)
@example("step = " + "[" * 3000)
@example(f"on_fail = {LONG_NUMBER}")
def test_a_plan_is_taken_or_refused(text: str) -> None:
    with suppress(InvalidField):
        assert parse_plan(text).steps


setting_names = st.sampled_from([*RouterSettings.model_fields, "x"])
setting_lines = st.builds("{} = {}".format, setting_names, toml_values)


@given(
    toml_texts.map(str.encode)
    | st.lists(setting_lines, max_size=5).map(lambda lines: "\n".join(lines).encode())
    | st.binary(max_size=40)
)
@example(b"public = " + b"[" * 3000)
@example(f"calls = {LONG_NUMBER}".encode())
def test_a_file_of_settings_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.toml"
    path.write_bytes(text)
    with suppress(WrongSetting):
        load(RouterSettings, path)


@given(
    st.sampled_from(sorted(Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService").methods)),
    st.binary(max_size=200),
)
def test_a_request_is_a_message_or_refused(name: str, data: bytes) -> None:
    method = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService").methods[name]
    with suppress(InvalidField):
        request = method.parse(data)
        if method.shape is not None:
            method.page(request)
        if method.watch is not None:
            method.watched(request)
