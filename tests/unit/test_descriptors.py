"""Contracts read from descriptors, and contracts that are refused at the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from libs.contract.descriptors import Contract
from libs.contract.unfit import UnfitContract
from libs.errors import InvalidField
from libs.pb.baton.options.v1 import options_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as sandbox
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.sandboxes.validation import check_new_name
from tests.contracts.pb.toy import shelf_pb2 as shelf
from tests.shelf import CONTRACT as SHELF

SANDBOX = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")


@pytest.mark.parametrize(
    ("contract", "name", "is_read", "operation"),
    [
        (SANDBOX, "CreateSandbox", False, "create"),
        (SANDBOX, "GetSandbox", True, "get"),
        (SANDBOX, "ListSandboxes", True, "list"),
        (SANDBOX, "WatchSandboxes", True, "get"),
        (SANDBOX, "UpdateSandbox", False, "update"),
        (SANDBOX, "DeleteSandbox", False, "delete"),
        (SANDBOX, "UndeleteSandbox", False, "update"),
        (SANDBOX, "AcquireLease", False, "update"),
        (SANDBOX, "RenewLease", False, "update"),
        (SANDBOX, "ReleaseLease", False, "update"),
        (SHELF, "Put", False, "create"),
        (SHELF, "Look", True, "get"),
        (SHELF, "Lend", False, "update"),
        (SHELF, "Browse", True, "list"),
    ],
)
def test_effect_and_operation_are_read_from_options(
    contract: Contract, name: str, is_read: bool, operation: str
) -> None:
    method = contract.methods[name]
    assert (method.is_read, method.operation) == (is_read, operation)


def test_a_key_may_be_made_of_several_nested_fields() -> None:
    key = SHELF.methods["Put"].key
    assert key is not None
    order = shelf.PutOrder(where=shelf.Place(room="attic"))
    assert key.lacks_id(order)
    assert key.with_id(order, "made") == "shelf/attic/made"
    order.where.isbn = "7"
    assert not key.lacks_id(order)
    assert key.of(order) == "shelf/attic/7"


def test_whether_a_call_may_create_depends_on_the_method_or_on_its_request() -> None:
    assert SHELF.methods["Put"].may_create(shelf.PutOrder())
    assert not SHELF.methods["Lend"].may_create(shelf.LendOrder())
    assert SHELF.methods["Lend"].may_create(shelf.LendOrder(buy=True))


@pytest.mark.parametrize(
    ("name", "may"),
    [("sandboxes/one", True), ("sandboxes/Box1", False), ("sandboxes/a/b", False), ("", False)],
)
def test_a_call_on_a_name_that_no_client_could_create_never_creates(name: str, may: bool) -> None:
    request = sandbox.UpdateSandboxRequest(allow_missing=True)
    request.sandbox.name = name
    assert SANDBOX.methods["UpdateSandbox"].may_create(request) is may


@pytest.mark.parametrize("name", ["a", "9-", "x" * 63, "x" * 64, "-a", "A", "a.b", "", "ß", "a\n"])
def test_the_contracts_pattern_of_new_names_is_the_stores_rule(name: str) -> None:
    request = sandbox.UpdateSandboxRequest(allow_missing=True)
    request.sandbox.name = f"sandboxes/{name}"
    try:
        check_new_name(request.sandbox.name)
    except InvalidField:
        assert not SANDBOX.methods["UpdateSandbox"].may_create(request)
    else:
        assert SANDBOX.methods["UpdateSandbox"].may_create(request)


def test_the_question_of_a_list_is_the_same_whatever_the_page() -> None:
    browse = SHELF.methods["Browse"]
    first = browse.page(shelf.BrowseOrder(reader="ann"))
    second = browse.page(shelf.BrowseOrder(reader="ann", most=5, **{"from": "x"}))
    other = browse.page(shelf.BrowseOrder(reader="bob"))
    assert first[2] == second[2] != other[2]
    assert (first[0], second[0], browse.page(shelf.BrowseOrder(most=100))[0]) == (3, 5, 7)


def test_the_question_of_a_watch_is_the_same_wherever_it_goes_on() -> None:
    follow = SHELF.methods["Follow"]
    assert follow.watched(shelf.FollowOrder(reader="ann", where="x")) == (
        "x",
        follow.watched(shelf.FollowOrder(reader="ann"))[1],
    )
    assert follow.watched(shelf.FollowOrder(reader="ann")) != follow.watched(shelf.FollowOrder(reader="bob"))


def test_bytes_that_are_no_request_are_refused() -> None:
    with pytest.raises(InvalidField, match="request"):
        SANDBOX.methods["GetSandbox"].parse(b"\x0a\x02\xff\xfe")


@pytest.mark.parametrize("place", ["nowhere:X", "libs.pb.sandbox.v1.sandbox_service_pb2:Other", "libs.errors:X", ""])
def test_a_place_that_holds_no_contract_is_refused(place: str) -> None:
    with pytest.raises(UnfitContract, match=r"give 'package\.module_pb2:ServiceName'"):
        Contract.load(place)


def service(rule: options_pb2.MethodRule | None, *, read: bool = False, streams: bool = False) -> ServiceDescriptor:
    """A service of one method, X(Q) returns (Q)."""
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="x", syntax="proto3")
    message = file.message_type.add(name="Q")
    message.field.add(name="name", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=1)
    message.field.add(name="size", number=2, type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, label=1)
    method = file.service.add(name="S").method.add(name="X", input_type=".x.Q", output_type=".x.Q")
    method.server_streaming = streams
    if read:
        method.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    if rule is not None:
        method.options.Extensions[options_pb2.method].CopyFrom(rule)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("x.S")


WATCH = options_pb2.WatchRule(items="name", removed="name", resume_token="name", reset="size", synced="size")


@pytest.mark.parametrize(
    ("rule", "read", "streams", "why"),
    [
        (None, True, False, "lacks the option"),
        (options_pb2.MethodRule(key="{name}", operation="get"), True, True, "streams"),
        (options_pb2.MethodRule(key="{name}", operation="fly"), True, False, "'fly' is not one of"),
        (options_pb2.MethodRule(key="{name}", operation="update", request_id="name"), False, True, "streams"),
        (options_pb2.MethodRule(operation="update", request_id="name", watch=WATCH), False, True, "streams"),
        (options_pb2.MethodRule(operation="get", watch=WATCH), True, False, "a watch answers with a stream"),
        (options_pb2.MethodRule(operation="get", watch=WATCH), True, True, "name is not a repeated message"),
        (options_pb2.MethodRule(key="{name}", operation="get", watch=WATCH), True, True, "either a key or a list, or"),
        (options_pb2.MethodRule(operation="get"), True, False, "either a key or a list"),
        (options_pb2.MethodRule(key="{name}", operation="update"), False, False, "needs a key and a request_id"),
        (options_pb2.MethodRule(key="{nome}", operation="get"), True, False, "no field 'nome'"),
        (options_pb2.MethodRule(key="{size}", operation="get"), True, False, "size is not a string"),
        (options_pb2.MethodRule(key="fixed", operation="get"), True, False, "names no field"),
        (options_pb2.MethodRule(key="{name}", operation="get", new_key_pattern="("), True, False, "new_key_pattern"),
        (
            options_pb2.MethodRule(key="{name}", operation="get", made_id="size"),
            True,
            False,
            "does not stand in the key",
        ),
        (
            options_pb2.MethodRule(operation="list", list=options_pb2.ListRule(items="name", next_page_token="name")),
            True,
            False,
            "no field ''",
        ),
    ],
)
def test_a_contract_that_does_not_say_enough_is_refused(
    rule: options_pb2.MethodRule | None, read: bool, streams: bool, why: str
) -> None:
    with pytest.raises(UnfitContract, match=why):
        Contract.of(service(rule, read=read, streams=streams))


def test_the_account_of_a_sandbox_is_read_in_each_schema_version() -> None:
    account = SANDBOX.account
    assert account is not None
    assert (account.record, account.name, sorted(account.forms)) == ("sandbox.v1.Sandbox", "account", [1, 2])
    content = Sandbox(account="acme").SerializeToString()
    assert [account.of(content, version) for version in (0, 1, 2, 3)] == ["acme", "acme", "acme", ""]
    assert account.of(content + b"\xff", 2) == "" == account.of(b"", 2)
    assert account.of(Sandbox(account="x" * 65).SerializeToString(), 2) == ""
    assert SHELF.account is None


def marked(change: Callable[[descriptor_pb2.FileDescriptorProto], None]) -> ServiceDescriptor:
    """A contract whose record names its account in field `owner`, after a change."""
    file = descriptor_pb2.FileDescriptorProto(name="y.proto", package="y", syntax="proto3")
    text = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    for message in (file.message_type.add(name="R"), file.message_type.add(name="Other")):
        message.field.add(name="name", number=1, type=text, label=1)
        message.field.add(name="owner", number=2, type=text, label=1)
        message.field.add(name="size", number=3, type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, label=1)
    mark(file.message_type[0].field[1])
    reply = file.message_type.add(name="Reply")
    reply.field.add(
        name="items", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, label=3, type_name=".y.R"
    )
    reply.field.add(
        name="other", number=2, type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, label=1, type_name=".y.Other"
    )
    reply.field.add(name="name", number=3, type=text, label=1)
    reply.field.add(name="size", number=4, type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, label=1)
    method = file.service.add(name="S").method.add(name="X", input_type=".y.Reply", output_type=".y.Reply")
    method.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    shape = options_pb2.ListRule(
        items="items", next_page_token="name", page_token="name", page_size="size", default_page_size=1, max_page_size=1
    )
    method.options.Extensions[options_pb2.method].CopyFrom(options_pb2.MethodRule(operation="list", list=shape))
    change(file)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("y.S")


def mark(field: descriptor_pb2.FieldDescriptorProto) -> None:
    field.options.Extensions[options_pb2.account] = True
    field.options.Extensions[field_behavior_pb2.field_behavior].append(field_behavior_pb2.IMMUTABLE)


def _mutable(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.message_type[0].field[1].options.ClearExtension(field_behavior_pb2.field_behavior)


def _list_of_others(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.message_type[2].field[0].type_name = ".y.Other"
    file.message_type[2].field[1].type_name = ".y.R"


def _old_form(file: descriptor_pb2.FileDescriptorProto) -> None:
    """The record has the form Other in version 1."""
    form = options_pb2.SchemaForm(version=1, message="y.R", form="y.Other")
    rule = options_pb2.SchemaRule(metadata="v", oldest=1, newest=2, forms=[form])
    file.service[0].options.Extensions[options_pb2.schema].CopyFrom(rule)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_mutable, "y.R.owner has the option `account`: it must be .* IMMUTABLE"),
        (lambda file: mark(file.message_type[0].field[0]), "y.R: 2 fields"),
        (lambda file: mark(file.message_type[1].field[1]), "is in y.Other, y.R: only one message"),
        (_list_of_others, "a list or watch shows y.Other"),
        (_old_form, "y.Other: 0 fields"),
    ],
)
def test_an_account_that_could_change_or_is_ambiguous_is_refused(
    change: Callable[[descriptor_pb2.FileDescriptorProto], None], why: str
) -> None:
    assert Contract.of(marked(lambda file: None)).account is not None
    with pytest.raises(UnfitContract, match=why):
        Contract.of(marked(change))


def test_an_account_is_a_text() -> None:
    def number(file: descriptor_pb2.FileDescriptorProto) -> None:
        file.message_type[0].field[1].type = descriptor_pb2.FieldDescriptorProto.TYPE_INT32

    with pytest.raises(UnfitContract, match=r"y\.R\.owner has the option `account`: it must be a string"):
        Contract.of(marked(number))
