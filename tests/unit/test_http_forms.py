"""The messages of a contract as callers of each schema version mean them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from libs.contract.descriptors import Contract
from libs.contract.unfit import UnfitContract
from libs.http.forms import Forms
from libs.http.json_body import read_message, write_message
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox
from tests.shelf import CONTRACT as SHELF

CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
FORMS = Forms(CONTRACT)
CREATE, LIST, WATCH = (CONTRACT.methods[name] for name in ("CreateSandbox", "ListSandboxes", "WatchSandboxes"))


def test_the_newest_version_has_the_contracts_own_classes() -> None:
    for version in (0, 2):
        assert FORMS.request(CREATE, version) is pb.CreateSandboxRequest
        assert FORMS.reply(CREATE, version) is Sandbox


def test_an_old_caller_writes_and_reads_the_flat_record() -> None:
    request = FORMS.request(CREATE, 1)()
    read_message(b'{"sandboxId":"a","sandbox":{"image":"x","cpu":1.5,"env":{"A":"b"},"timeoutS":"3"}}', request)
    sent = pb.CreateSandboxRequest.FromString(request.SerializeToString())
    flat = FlatSandbox.FromString(sent.sandbox.SerializeToString())
    assert (flat.image, flat.cpu, dict(flat.env), flat.timeout_s) == ("x", 1.5, {"A": "b"}, 3)
    reply = FORMS.reply(LIST, 1).FromString(pb.ListSandboxesResponse(sandboxes=[sent.sandbox]).SerializeToString())
    assert b'"cpu": 1.5' in write_message(reply)


def test_each_field_of_the_flat_form_has_its_number_type_and_name() -> None:
    built: Any = FORMS.reply(CREATE, 1).DESCRIPTOR
    for field in FlatSandbox.DESCRIPTOR.fields:
        found = built.fields_by_number[field.number]
        assert (found.name, found.type, found.is_repeated) == (field.name, field.type, field.is_repeated)
        assert found.has_presence == field.has_presence
    assert built.full_name == Sandbox.DESCRIPTOR.full_name


def test_fields_that_the_old_form_does_not_use_stay() -> None:
    built: Any = FORMS.reply(CREATE, 1).DESCRIPTOR
    old = FlatSandbox.DESCRIPTOR
    kept = {
        field.name
        for field in Sandbox.DESCRIPTOR.fields
        if field.number not in old.fields_by_number and field.name not in old.fields_by_name
    }
    assert {"spec", "labels", "lease"} <= kept <= set(built.fields_by_name)
    assert built.fields_by_name["lease"].message_type.full_name == "sandbox.v1.Lease"


def test_the_messages_around_the_record_are_the_same() -> None:
    for method in CONTRACT.methods.values():
        for kind, newest in (
            (FORMS.request(method, 1), method.request_class),
            (FORMS.reply(method, 1), method.reply_class),
        ):
            if newest is not Sandbox:
                assert [field.name for field in kind.DESCRIPTOR.fields] == [f.name for f in newest.DESCRIPTOR.fields]


def test_a_version_is_built_once() -> None:
    assert FORMS.request(WATCH, 1) is FORMS.request(WATCH, 1)
    assert FORMS.request(WATCH, 1).DESCRIPTOR.fields_by_name["filter"].type == FieldDescriptor.TYPE_STRING


def test_a_contract_without_versions_has_one_form() -> None:
    forms = Forms(SHELF)
    for method in SHELF.methods.values():
        assert forms.request(method, 1) is method.request_class and forms.reply(method, 0) is method.reply_class


def test_a_form_that_does_not_exist_is_named() -> None:
    schemas = replace(CONTRACT.schemas, forms={1: {"sandbox.v1.Sandbox": "sandbox.v1.Nothing"}})
    with pytest.raises(UnfitContract, match=r"schema version 1 names the message 'sandbox.v1.Nothing'"):
        Forms(replace(CONTRACT, schemas=schemas))
