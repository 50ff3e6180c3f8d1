"""Every field has limits, and every error names the field, its value and the valid form."""

import pytest
from google.protobuf.duration_pb2 import Duration

from libs.errors import InvalidField
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2 import (
    CreateSandboxRequest,
    DeleteSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
)
from tests.unit.sandboxes import NAME, OPERATIONS, a_sandbox, context


def spec(**fields: object) -> Sandbox:
    return a_sandbox(spec=SandboxSpec(**fields))  # type: ignore[arg-type]


WRONG_SANDBOXES = [
    (a_sandbox(state=99), "sandbox.state", "99", "STATE_RUNNING (2)"),
    (a_sandbox(state=-1), "sandbox.state", "-1", "STATE_PENDING (1)"),
    (a_sandbox(account="a b"), "sandbox.account", "'a b'", "A-Z"),
    (a_sandbox(account="a" * 65), "sandbox.account", "aaa", "1 to 64"),
    (a_sandbox(account="a\n"), "sandbox.account", "'a\\n'", "A-Z"),
    (Sandbox(spec=SandboxSpec(image="i")), "sandbox.account", "''", "required"),
    (a_sandbox(labels={"Team": "x"}), "sandbox.labels key", "'Team'", "a-z"),
    (a_sandbox(labels={"": "x"}), "sandbox.labels key", "''", "1 to 63"),
    (a_sandbox(labels={"k" * 64: "x"}), "sandbox.labels key", "kkk", "63"),
    (a_sandbox(labels={"team": "Blue"}), "sandbox.labels['team']", "'Blue'", "a-z"),
    (a_sandbox(labels={"team": "b" * 64}), "sandbox.labels['team']", "bbb", "63"),
    (a_sandbox(labels={f"k{n}": "" for n in range(64)}), "sandbox.labels", "65 entries", "at most 64"),
    (a_sandbox(annotations={"": "x"}), "sandbox.annotations key", "''", "1 to 253"),
    (a_sandbox(annotations={"a\tb": "x"}), "sandbox.annotations key", "'a\\tb'", "control"),
    (a_sandbox(annotations={"a": "x\0"}), "sandbox.annotations['a']", "***", "NUL"),
    (a_sandbox(annotations={"a": "é" * 131072}), "sandbox.annotations", "262154 bytes", "at most 262144 bytes"),
    (Sandbox(account="a"), "sandbox.spec.image", "''", "required"),
    (spec(image="a b"), "sandbox.spec.image", "'a b'", "without spaces"),
    (spec(image="a\x7fb"), "sandbox.spec.image", "'a\\x7fb'", "control characters"),
    (spec(image="i" * 513), "sandbox.spec.image", "iii", "1 to 512"),
    (spec(command=["x"] * 127), "sandbox.spec.command", "129 entries", "at most 128"),
    (spec(command=["é" * 2049]), "sandbox.spec.command[2]", "4098 bytes", "at most 4096 bytes"),
    (spec(command=["a\0"]), "sandbox.spec.command[2]", "'a\\x00'", "NUL"),
    (spec(env={f"E{n}": "" for n in range(256)}), "sandbox.spec.env", "257 entries", "at most 256"),
    (spec(env={"1A": ""}), "sandbox.spec.env key", "'1A'", "no digit first"),
    (spec(env={"A-B": ""}), "sandbox.spec.env key", "'A-B'", "letters"),
    (spec(env={"A": "x" * 32769}), "sandbox.spec.env['A']", "32769 bytes", "at most 32768 bytes"),
    (spec(cpu_millis=-1), "sandbox.spec.cpu_millis", "-1", "0 to 1000000"),
    (spec(cpu_millis=1_000_001), "sandbox.spec.cpu_millis", "1000001", "0 to 1000000"),
    (spec(memory_mib=-1), "sandbox.spec.memory_mib", "-1", "0 to 16777216"),
    (spec(memory_mib=2**62), "sandbox.spec.memory_mib", str(2**62), "0 to 16777216"),
    (spec(timeout=Duration(seconds=-1)), "sandbox.spec.timeout", "-1 s", "0 to 2592000"),
    (spec(timeout=Duration(nanos=-1)), "sandbox.spec.timeout", "-1 ns", "0 to 2592000"),
    (spec(timeout=Duration(seconds=1, nanos=10**9)), "sandbox.spec.timeout", "1000000000 ns", "nanos below"),
    (spec(timeout=Duration(seconds=2592000, nanos=1)), "sandbox.spec.timeout", "2592000 s 1 ns", "0 to 2592000"),
]

WRONG_REQUESTS = [
    ("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="-a"), "sandbox_id", "'-a'", "an id has"),
    ("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="A"), "sandbox_id", "'A'", "a-z"),
    ("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), sandbox_id="a" * 64), "sandbox_id", "aaa", "1 to 63"),
    ("CreateSandbox", CreateSandboxRequest(sandbox=a_sandbox(), request_id="1"), "request_id", "'1'", "a UUID"),
    ("GetSandbox", GetSandboxRequest(), "name", "''", 'write it as "sandboxes/"'),
    ("GetSandbox", GetSandboxRequest(name="sandboxes/a\0"), "name", "'sandboxes/a\\x00'", "no NUL"),
    ("GetSandbox", GetSandboxRequest(name="boxes/a"), "name", "'boxes/a'", "sandboxes/"),
    ("GetSandbox", GetSandboxRequest(name="sandboxes/" + "a" * 247), "name", "'sandboxes/a", "at most 256 bytes"),
    ("ListSandboxes", ListSandboxesRequest(page_size=-1), "page_size", "-1", "1 to 500"),
    ("ListSandboxes", ListSandboxesRequest(page_token="?"), "page_token", "'?'", "next_page_token"),
    ("ListSandboxes", ListSandboxesRequest(page_token="a" * 513), "page_token", "513 characters", "at most 512"),
    ("UpdateSandbox", UpdateSandboxRequest(), "sandbox.name", "''", "sandboxes/"),
    ("UpdateSandbox", UpdateSandboxRequest(sandbox=Sandbox(name=NAME, etag="1")), "sandbox.etag", "'1'", "quotes"),
    ("DeleteSandbox", DeleteSandboxRequest(name="x"), "name", "'x'", "sandboxes/"),
    ("DeleteSandbox", DeleteSandboxRequest(name=NAME, etag="0-1"), "etag", "'0-1'", "quotes included"),
    ("DeleteSandbox", DeleteSandboxRequest(name=NAME, request_id="{}"), "request_id", "'{}'", "a UUID"),
    ("UndeleteSandbox", UndeleteSandboxRequest(name="x"), "name", "'x'", "sandboxes/"),
    ("UndeleteSandbox", UndeleteSandboxRequest(name=NAME, etag='"x-1"'), "etag", "x-1", "as it was"),
]


@pytest.mark.parametrize(("sandbox", "field", "value", "expected"), WRONG_SANDBOXES)
def test_a_new_sandbox_with_a_wrong_field_is_refused(sandbox: Sandbox, field: str, value: str, expected: str) -> None:
    request = CreateSandboxRequest(sandbox=sandbox, sandbox_id="one")
    _is_refused("CreateSandbox", request.SerializeToString(), field, value, expected)


@pytest.mark.parametrize(
    ("sandbox", "field", "value", "expected"),
    [wrong for wrong in WRONG_SANDBOXES if wrong[1] != "sandbox.account"],
)
def test_an_update_with_a_wrong_field_is_refused(sandbox: Sandbox, field: str, value: str, expected: str) -> None:
    update = UpdateSandboxRequest(sandbox=sandbox)
    update.sandbox.name = NAME
    update.update_mask.paths.append(field.removeprefix("sandbox.").split("[")[0].removesuffix(" key"))
    _is_refused("UpdateSandbox", update.SerializeToString(), field, value, expected)


@pytest.mark.parametrize(("method", "request_", "field", "value", "expected"), WRONG_REQUESTS)
def test_a_request_with_a_wrong_field_is_refused(
    method: str, request_: GetSandboxRequest, field: str, value: str, expected: str
) -> None:
    _is_refused(method, request_.SerializeToString(), field, value, expected)


@pytest.mark.parametrize("method", OPERATIONS.methods)
@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"\xff", "corrupt", id="no message"),
        pytest.param(b"\x12\x05ab", "corrupt", id="cut off"),
        pytest.param(b"\x0a\x04\x0a\x02\xff\xfe\x0a\x02\xff\xfe\x12\x02\xff\xfe", "UTF-8", id="no UTF-8"),
    ],
)
def test_bytes_that_are_no_request_are_refused(method: str, data: bytes, why: str) -> None:
    _is_refused(method, data, "request", f"{len(data)} bytes", why)


def test_a_map_with_a_key_that_is_no_utf_8_is_refused() -> None:
    label = b"\x0a\x01\xff\x12\x01a"
    sandbox = b"\x2a" + bytes([len(label)]) + label
    _is_refused("CreateSandbox", b"\x0a" + bytes([len(sandbox)]) + sandbox, "request", "bytes", "UTF-8")


def test_what_is_just_within_every_limit_is_taken() -> None:
    sandbox = Sandbox(
        account="A" * 64,
        state=Sandbox.STATE_RUNNING,
        labels={f"{n:02}" + "k" * 61: "v" * 63 for n in range(64)},
        annotations={"k" * 253: "x" * (262144 - 253)},
        spec=SandboxSpec(
            image="i" * 512,
            command=["é" * 2048] * 128,
            env={f"_{n}": "" for n in range(255)} | {"A" * 256: "x" * 32768},
            cpu_millis=1_000_000,
            memory_mib=16 * 1024 * 1024,
            timeout=Duration(seconds=2592000),
        ),
    )
    request = CreateSandboxRequest(sandbox=sandbox, sandbox_id="0" + "-" * 62)
    assert OPERATIONS.parse("CreateSandbox", request.SerializeToString(), context())


def test_a_method_that_the_service_lacks_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="'Get' is not one of CreateSandbox, GetSandbox"):
        OPERATIONS.parse("Get", b"", context())


def _is_refused(method: str, data: bytes, field: str, value: str, expected: str) -> None:
    with pytest.raises(InvalidField) as caught:
        OPERATIONS.parse(method, data, context())
    error = caught.value
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "INVALID_FIELD", field)
    message, _, right = error.message.partition(" is not valid: ")
    assert value in message
    assert expected in right
