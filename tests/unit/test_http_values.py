"""Values of a path or a query: put into the fields of a message, or refused by name."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FieldOptions, UninterpretedOption
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import InvalidField
from libs.http.values import is_parameter, put_values
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb

WHAT = "query parameter"


def put(message: Message, *values: tuple[str, str]) -> Message:
    put_values(message, values, WHAT)
    return message


def test_scalars_are_read_under_both_names() -> None:
    wanted = pb.ListSandboxesRequest(page_size=5, show_deleted=True, filter="a & b")
    for size, shown in (("pageSize", "showDeleted"), ("page_size", "show_deleted")):
        assert put(pb.ListSandboxesRequest(), (size, "5"), (shown, "true"), ("filter", "a & b")) == wanted


def test_fields_of_messages_have_a_path() -> None:
    found = pb.UpdateSandboxRequest()
    put(
        found,
        ("sandbox.spec.cpuMillis", "-9223372036854775808"),
        ("sandbox.spec.command", "a"),
        ("sandbox.spec.command", ""),
        ("sandbox.spec.timeout", "3.5s"),
        ("sandbox.state", "STATE_RUNNING"),
        ("sandbox.createTime", "2026-01-02T03:04:05Z"),
        ("updateMask", "labels,spec.cpuMillis"),
    )
    assert found.sandbox.spec.cpu_millis == -(1 << 63)
    assert list(found.sandbox.spec.command) == ["a", ""]
    assert (found.sandbox.spec.timeout.seconds, found.sandbox.spec.timeout.nanos) == (3, 500_000_000)
    assert (found.sandbox.state, found.sandbox.create_time.seconds) == (2, 1767323045)
    assert list(found.update_mask.paths) == ["labels", "spec.cpu_millis"]


def test_numbers_bytes_and_enums_of_any_kind_are_read() -> None:
    assert put(sandbox_pb2.FlatSandbox(), ("cpu", "1e-3"), ("timeoutS", "0")) == sandbox_pb2.FlatSandbox(
        cpu=0.001, timeout_s=0
    )
    option = UninterpretedOption()
    put(option, ("stringValue", "-_-_"), ("positiveIntValue", "18446744073709551615"))
    assert (option.string_value, option.positive_int_value) == (b"\xfb\xff\xbf", (1 << 64) - 1)
    assert put(UninterpretedOption(), ("stringValue", "YQ")) == UninterpretedOption(string_value=b"a")
    assert put(FieldDescriptorProto(), ("label", "LABEL_REPEATED")) == FieldDescriptorProto(
        label=FieldDescriptorProto.LABEL_REPEATED
    )


@pytest.mark.parametrize(
    ("message", "path", "text", "named"),
    [
        (pb.ListSandboxesRequest, "pageSize", "x", "a whole number of -2147483648 to 2147483647"),
        (pb.ListSandboxesRequest, "pageSize", "", "a whole number"),
        (pb.ListSandboxesRequest, "pageSize", "2147483648", "a whole number"),
        (pb.ListSandboxesRequest, "pageSize", "1.0", "a whole number"),
        (pb.ListSandboxesRequest, "pageSize", "+1", "a whole number"),
        (pb.ListSandboxesRequest, "pageSize", "--1", "a whole number"),
        (pb.ListSandboxesRequest, "pageSize", "١", "a whole number"),
        (pb.ListSandboxesRequest, "pageSize", "9" * 5000, "a whole number"),
        (pb.ListSandboxesRequest, "showDeleted", "1", "true or false"),
        (pb.ListSandboxesRequest, "showDeleted", "True", "true or false"),
        (pb.UpdateSandboxRequest, "sandbox.state", "RUNNING", "STATE_RUNNING"),
        (pb.UpdateSandboxRequest, "sandbox.createTime", "yesterday", "google.protobuf.Timestamp"),
        (pb.UpdateSandboxRequest, "sandbox.spec.timeout", "3", "google.protobuf.Duration"),
        (sandbox_pb2.FlatSandbox, "cpu", "NaN", "a finite number"),
        (sandbox_pb2.FlatSandbox, "cpu", "inf", "a finite number"),
        (sandbox_pb2.FlatSandbox, "cpu", "1e999", "a finite number"),
        (sandbox_pb2.FlatSandbox, "cpu", "x", "a finite number"),
        (sandbox_pb2.FlatSandbox, "cpu", "1_0", "a finite number"),
        (sandbox_pb2.FlatSandbox, "cpu", " 1", "a finite number"),
        (UninterpretedOption, "stringValue", "***", "base64"),
        (UninterpretedOption, "stringValue", "é", "base64"),
        (UninterpretedOption, "positiveIntValue", "-1", "a whole number of 0"),
    ],
)
def test_a_value_that_is_none_of_the_type_is_refused(message: type[Message], path: str, text: str, named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        put(message(), (path, text))
    assert caught.value.field == path
    assert named in caught.value.message and len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "path",
    ["bogus", "", ".", "sandbox", "sandbox.", "sandbox.bogus", "sandbox.labels", "sandbox.labels.a",
     "updateMask.paths.x", "sandbox.spec", "requestId.x", "sandbox.spec.command.x"],
)  # fmt: skip
def test_a_parameter_that_is_no_field_is_refused_with_those_that_are(path: str) -> None:
    with pytest.raises(InvalidField) as caught:
        put(pb.UpdateSandboxRequest(), (path, "x"))
    assert caught.value.field == WHAT
    assert repr(path) in caught.value.message and "requestId" in caught.value.message


def test_a_parameter_comes_once_under_both_names() -> None:
    for second in ("pageSize", "page_size"):
        with pytest.raises(InvalidField, match="given twice"):
            put(pb.ListSandboxesRequest(), ("pageSize", "1"), (second, "1"))


def test_parameters_are_scalars_and_messages_that_json_writes_as_text() -> None:
    fields = pb.UpdateSandboxRequest.DESCRIPTOR.fields_by_name
    assert [name for name, field in fields.items() if not is_parameter(field)] == ["sandbox"]
    assert not is_parameter(FieldOptions.DESCRIPTOR.fields_by_name["uninterpreted_option"])
    assert fields["update_mask"].type == FieldDescriptor.TYPE_MESSAGE


@given(
    st.lists(st.tuples(st.sampled_from(["pageSize", "filter", "showDeleted", "x", "filter.x"]), st.text(max_size=9)))
)
def test_any_parameters_are_put_or_refused(values: list[tuple[str, str]]) -> None:
    message = pb.ListSandboxesRequest()
    try:
        put(message, *values)
    except InvalidField:
        return
    assert message.filter == dict(values).get("filter", "")
