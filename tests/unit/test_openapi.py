"""The OpenAPI document of a contract, made from descriptors and comments."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode

from libs.contract.descriptors import Contract
from libs.errors import BatonError
from libs.http.comments import Comments, UnfitComment
from libs.http.errors import HTTP_CODES, RefusedByHttp
from libs.http.json_schema import singular
from libs.http.openapi import document, open_path
from libs.http.templates import Template

ROOT = Path(__file__).parents[2]
SHIPPED = json.loads((ROOT / "libs/pb/sandbox/v1/openapi.json").read_text())
NOT_OF_AN_OPERATION = {"403", "405"}
"""Statuses of MCP, and of a method that a path does not have."""

TOY = """
syntax = "proto3";
package toy.v1;
import "baton/options/v1/options.proto";
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/timestamp.proto";

// Shelves
// of books.
service Toys {
  // Puts a book. Twice is once.
  //
  // More.
  rpc PutBook(PutBookRequest) returns (Book) {
    option (google.api.http) = {
      put: "/v1/{book.name=shelves/*/books/*}" body: "book"
      additional_bindings { post: "/v1/{path=**}:put" body: "*" response_body: "again" }
    };
    option (baton.options.v1.method) = {
      key: "{book.name}" operation: "update" request_id: "request_id" creates: true
    };
  }
  rpc GetBook(GetBookRequest) returns (Book) {
    option deprecated = true;
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = {get: "/v1/books/{name}"};
    option (baton.options.v1.method) = {key: "{name}" operation: "get"};
  }
}

message Book {
  // How it is bound.
  enum Cover { COVER_UNSPECIFIED = 0; COVER_HARD = 1; }
  string name = 1 [(google.api.field_behavior) = IDENTIFIER];
  // How many.
  // Example: "7"
  int64 pages = 2 [(google.api.field_behavior) = REQUIRED];
  uint32 weight = 3;
  bytes scan = 4;
  double price = 5;
  Cover cover = 6;
  repeated string tags = 7;
  map<string, Book> parts = 8;
  google.protobuf.Timestamp made = 9 [(google.api.field_behavior) = OUTPUT_ONLY];
  google.protobuf.Duration loan = 10;
  google.protobuf.FieldMask mask = 11;
  Book again = 12;
  bool lent = 13 [(google.api.field_behavior) = IMMUTABLE];
  string etag = 14;
}
message PutBookRequest {
  Book book = 1 [(google.api.field_behavior) = REQUIRED];
  string path = 2;
  string request_id = 3;
  repeated Book.Cover covers = 4;
  Nested nested = 5;
  message Nested { int32 depth = 1; google.protobuf.Timestamp since = 2; }
}
message GetBookRequest { string name = 1; }
"""


def made(tmp_path: Path, text: str = TOY) -> dict[str, Any]:
    protos = tmp_path / "protos"
    protos.mkdir()
    (protos / "toy.proto").write_text(text)
    image = tmp_path / "image.binpb"
    command = [sys.executable, ROOT / "protos/generate.py", protos, tmp_path / "out", "toy", "--image", image]
    subprocess.run(list(map(str, command)), check=True, timeout=60)
    files = FileDescriptorSet.FromString(image.read_bytes())
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return document(Contract.of(pool.FindServiceByName("toy.v1.Toys")), Comments.of(files))


def test_every_form_of_a_method_is_an_operation_with_its_path_query_and_body(tmp_path: Path) -> None:
    paths = made(tmp_path)["paths"]
    put = paths["/v1/shelves/{shelve}/books/{book}"]["put"]
    whole = paths["/v1/{path}:put"]["post"]
    assert (put["operationId"], whole["operationId"]) == ("PutBook", "PutBook2")
    assert (put["summary"], put["description"]) == ("Puts a book", "Puts a book. Twice is once.\n\nMore.")
    named = {(one["in"], one["name"]) for one in put["parameters"] if "name" in one}
    assert named == {
        ("path", "shelve"),
        ("path", "book"),
        ("query", "path"),
        ("query", "requestId"),
        ("query", "covers"),
        ("query", "nested.depth"),
        ("query", "nested.since"),
    }
    body = put["requestBody"]["content"]["application/json"]
    assert body["schema"]["allOf"] == [{"$ref": "#/components/schemas/Book"}, {"required": ["pages"]}]
    assert body["example"] == {"pages": "7"}
    assert put["requestBody"]["required"]
    assert {one["name"] for one in whole["parameters"] if "name" in one} == {"path"}
    inner = whole["requestBody"]["content"]["application/json"]["schema"]
    assert set(inner["properties"]) == {"book", "requestId", "covers", "nested"}
    assert inner["additionalProperties"] is False
    assert whole["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Book"}
    assert paths["/v1/books/{name}"]["get"]["deprecated"]


def test_a_message_s_schema_is_what_proto3_json_writes(tmp_path: Path) -> None:
    schemas = made(tmp_path)["components"]["schemas"]
    found = schemas["Book"]["properties"]
    assert found["pages"] == {
        "type": "string",
        "format": "int64",
        "pattern": "^-?[0-9]{1,19}$",
        "description": "How many.",
        "examples": ["7"],
    }
    assert found["weight"] == {"type": "integer", "format": "uint32", "minimum": 0}
    assert (found["scan"]["type"], found["scan"]["contentEncoding"]) == ("string", "base64")
    assert found["cover"] == {"$ref": "#/components/schemas/Book.Cover"}
    assert schemas["Book.Cover"] == {
        "type": "string",
        "enum": ["COVER_UNSPECIFIED", "COVER_HARD"],
        "description": "How it is bound.",
    }
    assert found["tags"] == {"type": "array", "items": {"type": "string"}}
    assert found["parts"]["additionalProperties"] == found["again"] == {"$ref": "#/components/schemas/Book"}
    assert found["made"] == {"type": "string", "format": "date-time", "readOnly": True}
    assert found["loan"]["pattern"].endswith("s$")
    assert found["lent"] == {"type": "boolean", "description": "Immutable: set at creation only."}


def test_headers_and_errors_are_those_that_a_method_can_take_and_give(tmp_path: Path) -> None:
    paths = SHIPPED["paths"]

    def headers(path: str, verb: str) -> set[str]:
        return {one["$ref"].rpartition("/")[2] for one in paths[path][verb]["parameters"] if "$ref" in one}

    always = {"X-Server-Timeout", "Prefer", "baton-explain", "baton-client", "traceparent", "sandbox-schema-version"}
    assert headers("/v1/sandboxes", "get") == always
    assert headers("/v1/sandboxes", "post") == always | {"Idempotency-Key"}
    assert headers("/v1/sandboxes/{sandbox}", "patch") == always | {"Idempotency-Key", "If-Match"}
    assert headers("/v1/sandboxes/{sandbox}", "get") == always | {"If-None-Match"}
    assert headers("/v1/sandboxes:watch", "get") == always | {"Last-Event-ID"}
    assert set(paths["/v1/sandboxes/{sandbox}"]["get"]["responses"]) == {
        *("200", "304", "400", "401", "404", "408", "409", "429", "431", "500", "501", "503", "504")
    }
    assert {"409", "413", "415"} <= set(paths["/v1/sandboxes"]["post"]["responses"])
    assert set(paths["/v1/sandboxes:watch"]["get"]["responses"]["200"]["content"]) == {
        *("text/event-stream", "application/x-ndjson")
    }
    toy = made(tmp_path)
    assert "sandbox-schema-version" not in toy["components"]["parameters"]
    assert set(toy["paths"]["/v1/books/{name}"]["get"]["responses"]) == {
        *("200", "304", "400", "401", "404", "408", "409", "429", "431", "500", "501", "503", "504")
    }


def test_every_error_has_its_code_and_its_delay_in_the_document() -> None:
    """Those that a listener sends before it knows the operation, too."""
    for process in ("simple_mcp", "service_layer", "router"):
        importlib.import_module(f"services.{process}.__main__")
    responses = SHIPPED["paths"]["/v1/sandboxes/{sandbox}"]["patch"]["responses"]
    answers = {code: SHIPPED["components"]["responses"].get(f"Error{code}") for code in responses}
    found = set()
    for kind in _kinds(BatonError):
        code = str(kind.http_code if issubclass(kind, RefusedByHttp) else HTTP_CODES[StatusCode[kind.code]])
        if code in NOT_OF_AN_OPERATION:
            continue
        assert code in answers, f"{kind.__name__}: {code}"
        assert kind.retry_seconds is None or "Retry-After" in answers[code]["headers"], kind.__name__
        found.add(code)
    assert found == set(answers) - {"200"}


def _kinds(kind: type[BatonError]) -> Iterator[type[BatonError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)


def test_every_reference_of_the_shipped_document_leads_somewhere() -> None:
    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [one for inner in part.values() for one in references(inner)]
        return [one for inner in part for one in references(inner)] if isinstance(part, list) else []

    for reference in references(SHIPPED):
        found = SHIPPED
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
    assert "`FlatSandbox` in the place of `Sandbox`" in SHIPPED["info"]["description"]


def test_the_document_of_the_sandboxes_describes_every_operation_and_field() -> None:
    for path, operations in SHIPPED["paths"].items():
        for verb, operation in operations.items():
            assert operation["summary"], (path, verb)
            assert all("description" in one or "$ref" in one for one in operation["parameters"]), (path, verb)
    writable = SHIPPED["components"]["schemas"]["Sandbox"]["properties"]
    assert {name for name, schema in writable.items() if not schema.get("readOnly")} == {
        *("name", "state", "spec", "labels", "annotations", "account", "etag")
    }


def test_an_example_that_is_not_json_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UnfitComment, match=r"toy\.v1\.Book\.pages: Example: seven is not JSON"):
        made(tmp_path, TOY.replace('Example: "7"', "Example: seven"))


@pytest.mark.parametrize(
    ("template", "path", "fields"),
    [
        ("/v1/{name=sandboxes/*}:undelete", "/v1/sandboxes/{sandbox}:undelete", ["name"]),
        ("/v1/{a.b=projects/*/things/**}", "/v1/projects/{project}/things/{thing}", ["a.b", "a.b"]),
        ("/v1/{x}/{y.x}", "/v1/{x}/{x2}", ["x", "y.x"]),
        ("/v1/boxes/*", "/v1/boxes/{box}", [""]),
    ],
)
def test_a_template_is_a_path_with_a_parameter_for_each_star(template: str, path: str, fields: list[str]) -> None:
    found, parameters = open_path(Template.parse(template))
    assert (found, [parameter.field for parameter in parameters]) == (path, fields)


def test_a_collection_s_name_gives_the_name_of_one() -> None:
    nouns = ("sandboxes", "policies", "books", "churches", "glasses", "glass", "leases")
    assert [singular(noun) for noun in nouns] == ["sandbox", "policy", "book", "church", "glass", "glass", "lease"]
