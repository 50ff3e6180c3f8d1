"""Schema versions: each version reads the other one's bytes, and a round trip loses nothing."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from libs.contract.schemas import ONE_SCHEMA, RecordCorrupt, SchemaUnknown, SchemaVersions
from libs.errors import InvalidField
from libs.ownership.model import Row, Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox, SandboxSpec
from libs.sandboxes.schema import METADATA, SCHEMAS
from libs.sandboxes.schema_v1 import NUMBERS
from tests.unit.sandboxes import CONTRACT_SCHEMAS, a_sandbox

KNOWN = {*NUMBERS, *Sandbox.DESCRIPTOR.fields_by_number}

text = st.text(max_size=6)
int64 = st.one_of(st.integers(-5, 5_000), st.integers(-(2**63), 2**63 - 1))
durations = st.builds(Duration, seconds=int64, nanos=st.integers(-(2**31), 2**31 - 1) | st.just(0))
times = st.builds(Timestamp, seconds=int64, nanos=st.integers(0, 999_999_999))
raw_fields = st.builds(
    lambda number, value: _tag(number, 2) + bytes([len(value)]) + value,
    st.integers(15, 2**29 - 1).filter(lambda number: number not in KNOWN),
    st.binary(max_size=8),
)
"""A field that no version knows, as bytes of the wire."""


def _tag(number: int, kind: int) -> bytes:
    value, out = number << 3 | kind, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@st.composite
def with_unknown(draw: st.DrawFn, messages: st.SearchStrategy[Any]) -> Any:
    message = draw(messages)
    message.MergeFromString(b"".join(draw(st.lists(raw_fields, max_size=2))))
    return message


specs = st.builds(
    SandboxSpec,
    image=text,
    command=st.lists(text, max_size=2),
    env=st.dictionaries(text, text, max_size=2),
    cpu_millis=int64,
    memory_mib=int64,
    timeout=st.none() | with_unknown(durations),
)
sandboxes = with_unknown(
    st.builds(
        Sandbox,
        name=text,
        uid=text,
        state=st.integers(0, 9),
        spec=st.none() | with_unknown(specs),
        labels=st.dictionaries(text, text, max_size=2),
        annotations=st.dictionaries(text, text, max_size=2),
        account=text,
        revision=int64,
        etag=text,
        create_time=st.none() | times,
        update_time=st.none() | times,
        delete_time=st.none() | with_unknown(times),
        schema_version=st.just(2),
    )
)


def row(payload: bytes, version: int) -> Row:
    return Row("sandboxes/one", Version(0, 1), Store.A, Version(0, 1), True, payload, version)


def flat_of(sandbox: Sandbox) -> FlatSandbox:
    """The sandbox as a client of version 1 reads it."""
    return FlatSandbox.FromString(SCHEMAS.converted(row(sandbox.SerializeToString(), 2), 1))


def model_of(flat: FlatSandbox) -> Sandbox:
    """The sandbox as a client of version 2 reads it."""
    return Sandbox.FromString(SCHEMAS.converted(row(flat.SerializeToString(), 1), 2))


@given(sandboxes)
def test_nothing_is_lost_on_the_way_to_version_1_and_back(sandbox: Sandbox) -> None:
    """A client of version 1 parses it too, and sends unknown fields back."""
    old = flat_of(sandbox)
    assert old.schema_version == 1
    assert model_of(old) == sandbox
    assert model_of(old).SerializeToString(deterministic=True) == sandbox.SerializeToString(deterministic=True)


@given(sandboxes)
@example(Sandbox(spec=SandboxSpec(cpu_millis=-(1 << 63)), schema_version=2))
@example(Sandbox(spec=SandboxSpec(cpu_millis=(1 << 63) - 1), schema_version=2))
def test_a_record_of_version_1_comes_back_byte_for_byte(sandbox: Sandbox) -> None:
    stored = SCHEMAS.converted(row(sandbox.SerializeToString(), 2), 1)
    there = SCHEMAS.converted(row(stored, 1), 2)
    assert SCHEMAS.converted(row(there, 2), 1) == stored
    assert SCHEMAS.converted(row(stored, 1), 1) is stored


def test_version_1_is_flat() -> None:
    sandbox = a_sandbox(state=Sandbox.STATE_RUNNING, create_time=Timestamp(seconds=7, nanos=500_000_000))
    sandbox.spec.MergeFrom(SandboxSpec(memory_mib=64, timeout=Duration(seconds=30)))
    old = flat_of(sandbox)
    seen = (old.state, old.image, list(old.command), dict(old.env), old.cpu, old.memory_mb, old.timeout_s)
    assert seen == (2, "repo/image:1", ["run", "it"], {"HOME": "/"}, 0.5, 64, 30)
    assert (old.account, dict(old.metadata), old.created_at) == ("ann@example", {"team": "blue"}, 7.5)
    assert not Sandbox.FromString(old.SerializeToString()).spec.image, "nothing is said twice"


def test_what_version_1_cannot_say_exactly_is_shown_as_far_as_it_goes_and_kept() -> None:
    sandbox = a_sandbox(spec=SandboxSpec(timeout=Duration(seconds=1, nanos=500_000_000)))
    old = flat_of(sandbox)
    assert old.timeout_s == 1
    assert model_of(old).spec.timeout == Duration(seconds=1, nanos=500_000_000)
    old.timeout_s = 2
    assert model_of(old).spec.timeout == Duration(seconds=2), "what the client has changed counts"
    old.ClearField("timeout_s")
    assert not model_of(old).spec.HasField("timeout"), "what it has taken away is not there any more"


@pytest.mark.parametrize("cpu", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_number_that_no_sandbox_has_is_refused(cpu: float) -> None:
    said = Sandbox.FromString(FlatSandbox(cpu=cpu).SerializeToString())
    with pytest.raises(InvalidField, match=r"sandbox\.cpu: .* is not valid: a finite number of processors"):
        SCHEMAS.model_of_request(said, 1)
    with pytest.raises(RecordCorrupt):
        model_of(FlatSandbox(cpu=cpu))


def test_fields_of_version_1_in_a_message_of_version_2_are_refused_with_what_to_say() -> None:
    """Otherwise, if a client forgets to send its version, its values would be kept as unknown fields."""
    forgetful = Sandbox.FromString(FlatSandbox(name="sandboxes/one", image="image:1").SerializeToString())
    with pytest.raises(InvalidField, match=f"'field 30'.*version 1 has it: send {METADATA}: 1 in the call's metadata"):
        SCHEMAS.model_of_request(forgetful, 2)
    assert SCHEMAS.model_of_request(forgetful, 1).spec.image == "image:1"


def test_an_answer_that_was_kept_says_what_it_is_in() -> None:
    new = a_sandbox(schema_version=2).SerializeToString(deterministic=True)
    old = SCHEMAS.answer(new, 1)
    assert SCHEMAS.answer(new, 2) == SCHEMAS.answer(old, 2) == new
    assert SCHEMAS.answer(old, 1) == old != new
    assert SCHEMAS.answer(b"", 1) == b""


def test_of_a_version_that_is_not_in_the_table_nothing_is_read() -> None:
    later = row(b"\xff", 3)
    for reading in (SCHEMAS.model_of, lambda it: SCHEMAS.converted(it, 2), lambda it: SCHEMAS.converted(it, 1)):
        with pytest.raises(SchemaUnknown, match="'sandboxes/one' has schema version 3, this store understands 1 to 2"):
            reading(later)
    with pytest.raises(SchemaUnknown):
        SCHEMAS.answer(Sandbox(schema_version=3).SerializeToString(), 2)


def test_the_contract_offers_the_versions_of_the_table() -> None:
    forms = {1: {Sandbox.DESCRIPTOR.full_name: FlatSandbox.DESCRIPTOR.full_name}}
    assert SchemaVersions(METADATA, SCHEMAS.oldest, SCHEMAS.newest, forms) == CONTRACT_SCHEMAS


@pytest.mark.parametrize(
    ("metadata", "default", "version"),
    [((), 0, 2), ((), 1, 1), (((METADATA, "1"),), 0, 1), (((METADATA, "2"),), 1, 2), (None, 0, 2)],
)
def test_a_call_says_its_version_in_its_metadata(metadata: Any, default: int, version: int) -> None:
    assert CONTRACT_SCHEMAS.asked(metadata, default) == version


@pytest.mark.parametrize("value", ["0", "3", "-1", "two", "", "1.5", "²", "9" * 5000, b"\xff"])
def test_a_version_that_does_not_exist_is_refused_with_those_that_do(value: str | bytes) -> None:
    with pytest.raises(InvalidField, match=f"{METADATA}: .* is not valid: 1 to 2$"):
        CONTRACT_SCHEMAS.asked(((METADATA, value),), 1)


def test_a_contract_without_versions_asks_for_none() -> None:
    assert ONE_SCHEMA.asked(((METADATA, "nonsense"),)) == 0
    assert not ONE_SCHEMA.is_old(0)
