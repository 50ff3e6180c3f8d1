"""JSON bodies: a message of proto3 JSON, or a refusal that names the field by its path."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import InvalidField
from libs.http.json_body import MOST_VALUES, parse_json, read_message, write_message
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb

INT64 = "a whole number of -9223372036854775808 to 9223372036854775807"


def read(body: bytes | str, message: Message | None = None) -> pb.CreateSandboxRequest:
    found = pb.CreateSandboxRequest()
    read_message(body.encode() if isinstance(body, str) else body, found if message is None else message)
    return found


def spec(**fields: object) -> str:
    return json.dumps({"sandbox": {"spec": fields}})


def test_both_names_of_a_field_are_read() -> None:
    assert read('{"sandboxId":"a"}') == read('{"sandbox_id":"a"}') == pb.CreateSandboxRequest(sandbox_id="a")


def test_values_of_json_are_read_as_the_mapping_has_them() -> None:
    body = spec(cpuMillis="1500", memoryMib=64, timeout="3.5s", env={"A": "b"}, command=["x", "y"])
    found = read(body).sandbox.spec
    assert (found.cpu_millis, found.memory_mib, found.timeout.nanos) == (1500, 64, 500_000_000)
    assert (dict(found.env), list(found.command)) == ({"A": "b"}, ["x", "y"])
    assert read('{"sandbox":{"state":"STATE_RUNNING"}}') == read('{"sandbox":{"state":2}}')
    assert read(spec(cpuMillis=2.0)).sandbox.spec.cpu_millis == 2
    assert read('{"sandbox":null,"sandboxId":null}') == pb.CreateSandboxRequest()
    update = pb.UpdateSandboxRequest()
    read_message(b'{"updateMask":"labels,spec.cpuMillis"}', update)
    assert list(update.update_mask.paths) == ["labels", "spec.cpu_millis"]


def test_what_is_written_is_read_again_and_leaves_defaults_out() -> None:
    found = read(spec(cpuMillis="1500", timeout="3s", image="ü"))
    data = write_message(found)
    assert json.loads(data) == {"sandbox": {"spec": {"cpuMillis": "1500", "timeout": "3s", "image": "ü"}}}
    assert b"\n" not in data and read(data) == found


@pytest.mark.parametrize(
    ("body", "field", "named"),
    [
        ("", "body", "JSON"),
        ("{", "body", "line 1 column 2"),
        ("{}{}", "body", "Extra data"),
        ("[]", "body", "a JSON object"),
        ("null", "body", "a JSON object"),
        ('"x"', "body", "a JSON object"),
        (b"\xff", "body", "UTF-8"),
        (b"\xef\xbb\xbf{}", "body", "BOM"),
        (b'{"sandboxId":"\xc3"}', "body", "UTF-8"),
        ('{"sandboxId":NaN}', "body", "finite"),
        ('{"sandboxId":-Infinity}', "body", "finite"),
        ('{"sandboxId":"a","sandboxId":"a"}', "body", "each key once"),
        ('{"sandbox":{"labels":{"a":"1","a":"2"}}}', "body", "each key once"),
        ('{"sandboxId":"\\ud800"}', "sandboxId", "surrogate"),
        ('{"bogus":1}', "bogus", "sandboxId"),
        ('{"sandbox":{"bogus":1}}', "sandbox.bogus", "createTime"),
        ('{"sandbox":{"spec":{"bogus":1}}}', "sandbox.spec.bogus", "image"),
        ('{"sandboxId":1}', "sandboxId", "a JSON string"),
        ('{"sandbox":[]}', "sandbox", "sandbox.v1.Sandbox"),
        ('{"sandbox":"x"}', "sandbox", "sandbox.v1.Sandbox"),
        ('{"validateOnly":"true"}', "validateOnly", "true or false"),
        ('{"validateOnly":1}', "validateOnly", "true or false"),
        ('{"sandbox":{"labels":{"a":1}}}', "sandbox.labels.a", "a JSON string"),
        ('{"sandbox":{"labels":{"a":null}}}', "sandbox.labels.a", "a JSON string"),
        ('{"sandbox":{"labels":["a"]}}', "sandbox.labels", "a JSON object"),
        ('{"sandbox":{"state":"RUNNING"}}', "sandbox.state", "STATE_RUNNING"),
        ('{"sandbox":{"state":["STATE_RUNNING"]}}', "sandbox.state", "STATE_RUNNING"),
        ('{"sandbox":{"state":true}}', "sandbox.state", "STATE_RUNNING"),
        ('{"sandbox":{"createTime":"yesterday"}}', "sandbox.createTime", "timestamp"),
        ('{"sandbox":{"createTime":1}}', "sandbox.createTime", "value"),
        (spec(command="x"), "sandbox.spec.command", "a JSON array"),
        (spec(command=["a", 1]), "sandbox.spec.command[1]", "a JSON string"),
        (spec(command=[None]), "sandbox.spec.command[0]", "a JSON string"),
        (spec(timeout=1), "sandbox.spec.timeout", "Duration"),
        (spec(timeout="x"), "sandbox.spec.timeout", "value"),
        (spec(cpuMillis="x"), "sandbox.spec.cpuMillis", INT64),
        (spec(cpuMillis="1_0"), "sandbox.spec.cpuMillis", INT64),
        (spec(cpuMillis="١"), "sandbox.spec.cpuMillis", INT64),
        (spec(cpuMillis=1.5), "sandbox.spec.cpuMillis", INT64),
        (spec(cpuMillis=True), "sandbox.spec.cpuMillis", INT64),
        (spec(cpuMillis=[1]), "sandbox.spec.cpuMillis", INT64),
        (spec(cpuMillis=1 << 63), "sandbox.spec.cpuMillis", INT64),
        ('{"sandbox":{"spec":{"cpuMillis":1e400}}}', "sandbox.spec.cpuMillis", INT64),
    ],
)
def test_a_refusal_names_the_field_and_the_remedy(body: bytes | str, field: str, named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read(body)
    assert caught.value.field == field
    assert named in caught.value.message


def test_a_field_under_both_of_its_names_is_refused() -> None:
    with pytest.raises(InvalidField, match="it is also given as sandbox_id"):
        read('{"sandbox_id":"a","sandboxId":"a"}')


def test_a_field_of_a_body_that_is_one_field_has_its_whole_path() -> None:
    with pytest.raises(InvalidField) as caught:
        read_message(b'{"spec":{"cpuMillis":"x"}}', pb.CreateSandboxRequest().sandbox, "sandbox")
    assert caught.value.field == "sandbox.spec.cpuMillis"


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"sandbox":' * 100_000,
        '{"sandbox":{"spec":{"env":' + '{"a":' * 5000 + "1" + "}" * 5003,
        '{"sandbox":{"spec":{"cpuMillis":' + "9" * 100_000 + "}}}",
    ],
)
def test_deep_and_long_values_are_refused(body: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read(body)
    assert len(caught.value.message) < 1000


def test_a_number_that_only_a_double_holds_is_no_number() -> None:
    with pytest.raises(InvalidField) as caught:
        read('{"cpu":"1.5.1"}', sandbox_pb2.FlatSandbox())
    assert caught.value.field == "cpu"


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    with suppress(InvalidField):
        parse_json(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["sandbox", "sandboxId", "spec", "labels", "command", "cpuMillis", "state", "timeout", "a"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_message_or_refused(value: object) -> None:
    message = pb.CreateSandboxRequest()
    try:
        read_message(json.dumps(value).encode(), message)
    except InvalidField:
        return
    assert isinstance(value, dict)
    again = pb.CreateSandboxRequest()
    read_message(write_message(message), again)
    assert again == message


def test_a_key_that_is_there_twice_is_found_in_linear_time() -> None:
    body = json.dumps({str(n): 0 for n in range(20_000)})[:-1] + ', "19999": 0}'
    began = time.process_time()
    with pytest.raises(InvalidField, match="'19999'"):
        parse_json(body.encode())
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("field", ["env", "command"])
def test_the_values_of_a_body_have_a_bound(field: str) -> None:
    def of(number: int) -> str:
        return spec(**{field: [""] * number if field == "command" else {str(n): "" for n in range(number)}})

    # The sandbox, its spec and the field are values too.
    assert read(of(MOST_VALUES - 3))
    with pytest.raises(InvalidField, match=f"at most {MOST_VALUES} values"):
        read(of(MOST_VALUES - 2))


def test_the_text_of_a_mask_has_a_bound() -> None:
    with pytest.raises(InvalidField, match="at most 10000 characters") as caught:
        read(json.dumps({"updateMask": "a," * 6000}), pb.UpdateSandboxRequest())
    assert caught.value.field == "updateMask"


def test_half_a_surrogate_pair_is_no_name_of_an_enum() -> None:
    with pytest.raises(InvalidField) as caught:
        read('{"sandbox":{"state":"\\ud800"}}')
    assert caught.value.field == "sandbox.state"
