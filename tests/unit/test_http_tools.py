"""Tools of an unknown contract, their schemas, and the text of errors for agents."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from libs.contract.descriptors import Contract, Method
from libs.errors import InvalidField, Overloaded
from libs.http.call import DoorCall
from libs.http.comments import Comments
from libs.http.errors import Failure, failure_of
from libs.http.forms import Forms
from libs.http.mcp_server import error_text
from libs.http.tools import Records, Tool, snake_case, tools_of
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import DeadlineExceeded, Internal
from services.router.api.tools import public_status, status_text

SHELF = Contract.load("tests.contracts.pb.toy.shelf_pb2:Shelf")
SANDBOXES = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")


class Nowhere:
    """A caller whose calls go nowhere."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.forms = Forms(contract)

    async def answer(self, method: Method, call: DoorCall) -> bytes:
        raise AssertionError("no call is made")


def tools(contract: Contract) -> dict[str, Tool]:
    return {tool.name: tool for tool in tools_of(Nowhere(contract))}


def test_each_method_with_one_answer_is_a_tool() -> None:
    for contract in (SHELF, SANDBOXES):
        unary = {name for name, method in contract.methods.items() if method.watch is None}
        assert set(tools(contract)) == {snake_case(name) for name in unary} and len(unary) < len(contract.methods)


@pytest.mark.parametrize(
    ("name", "words"),
    [("CreateSandbox", "create_sandbox"), ("Put", "put"), ("GetHTTPRoute", "get_http_route"), ("ListV2", "list_v2")],
)
def test_a_tool_is_named_as_its_method(name: str, words: str) -> None:
    assert snake_case(name) == words


def test_every_reference_of_a_schema_stands_in_it() -> None:
    for contract in (SHELF, SANDBOXES):
        for schema in (1, 2):
            comments = Comments.load(contract, schema)
            for tool in tools(contract).values():
                for found in (tool.input_schema(comments, schema), tool.output_schema(comments, schema)):
                    names = {reference.removeprefix("#/$defs/") for reference in references(found)}
                    assert found["type"] == "object" and names <= set(found.get("$defs", {}))


def references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*map(references, schema.values()))
    return set().union(*map(references, schema)) if isinstance(schema, list) else set()


def test_a_reply_may_have_what_a_request_may_not() -> None:
    """A newer program's fields and enum values, and numbers that are not finite."""
    comments = Comments.load(SANDBOXES)
    update = tools(SANDBOXES)["update_sandbox"]
    sent, given = update.input_schema(comments, 2)["$defs"], update.output_schema(comments, 2)
    assert sent["Sandbox"]["additionalProperties"] is False and "additionalProperties" not in given
    assert sent["Sandbox.State"]["type"] == "string" and {"type", "enum"} <= set(sent["Sandbox.State"])
    assert [one["type"] for one in given["$defs"]["Sandbox.State"]["anyOf"]] == ["string", "integer"]


def test_a_creation_must_give_what_a_change_need_not() -> None:
    comments = Comments.load(SANDBOXES)
    create, update = (tools(SANDBOXES)[f"{verb}_sandbox"].input_schema(comments, 2) for verb in ("create", "update"))
    assert create["properties"]["sandbox"]["required"] == ["spec", "account"]
    assert "required" not in update["properties"]["sandbox"] and update["required"] == ["sandbox"]
    old = tools(SANDBOXES)["create_sandbox"].input_schema(Comments.load(SANDBOXES, 1), 1)
    assert old["required"] == ["sandbox"] and "required" not in old["properties"]["sandbox"]


def test_an_old_schema_version_has_its_own_words() -> None:
    newest, old = Comments.load(SANDBOXES), Comments.load(SANDBOXES, 1)
    assert newest.at("sandbox.v1.Sandbox").text == "An isolated environment that runs code for an agent."
    assert old.at("sandbox.v1.Sandbox").text.startswith("A sandbox in schema version 1")
    assert old.at("sandbox.v1.Sandbox.cpu").text and not newest.at("sandbox.v1.Sandbox.cpu").text


def test_a_key_of_several_parts_is_a_path_of_a_resource() -> None:
    caller = Nowhere(SANDBOXES)
    (records,) = Records.of(caller, tools_of(caller))
    assert records.template == "sandbox://{name}"
    assert records.arguments("sandbox://sandboxes%2Fa%3Ab") == {"name": "sandboxes/a:b"}
    assert records.arguments("book://x") is None
    two = Records("book://{room}/{isbn}", records.tool, "book", ("room", "isbn"))
    assert two.arguments("book://a%2Fb/c") == {"room": "a/b", "isbn": "c"}
    for uri in ("book://a", "book://a/", "book://a/b/c"):
        with pytest.raises(InvalidField, match=r"of the form book://\{room\}/\{isbn\}"):
            two.arguments(uri)


@pytest.mark.parametrize(
    ("failed", "text"),
    [
        (
            failure_of(InvalidField("name", "x", "a name")),
            "INVALID_FIELD: name: 'x' is not valid: a name; correct the argument and call again",
        ),
        (
            failure_of(DeadlineExceeded()),
            "DEADLINE_EXCEEDED: The call exceeded its deadline. A write may have had its effect: retry with its"
            " request_id; call again later with requestId 7, which has one effect",
        ),
        (
            failure_of(Internal()),
            "INTERNAL: The server failed; its log has the details; call again later with requestId 7,"
            " which has one effect",
        ),
        (
            Failure(status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="gone"), 503),
            "UNAVAILABLE: gone; call again later with requestId 7, which has one effect",
        ),
    ],
)
def test_an_agent_reads_the_reason_and_what_to_do(failed: Failure, text: str) -> None:
    assert error_text(failed, "requestId", "7") == text


def test_an_agent_reads_when_to_call_again() -> None:
    assert error_text(failure_of(Overloaded())).endswith("; call again in 1 s")


def test_a_public_status_has_no_words_of_operators_and_errors() -> None:
    status = pb.GetStatusResponse(buckets=1024, phase_actor="me@host", log_trouble="host:9092", alerts=["look"])
    status.stores.add(store=1, reachable=True, note="host:5432", records=7)
    status.gates.add(name="lag", verdict=pb.VERDICT_FAIL, evidence="of host")
    status.routers.add(name="host:1")
    found = public_status(status)
    assert (found.buckets, found.stores[0].records, found.gates[0].name) == (1024, 7, "lag")
    assert "host" not in str(found) and not found.alerts
    assert status_text(found).count("host") == 0
