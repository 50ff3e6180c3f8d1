"""Path templates: which paths they match, and the values that a path gives."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.contract.descriptors import Contract
from libs.errors import InvalidField
from libs.http.bindings import Routes, allowed
from libs.http.errors import NoSuchPath, NoSuchVerb
from libs.http.templates import Template, UnfitTemplate, decode, split_verb

CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
ROUTES = Routes.of(CONTRACT)


def route(verb: str, path: str) -> tuple[str, dict[str, str]]:
    found = ROUTES.find(verb, path)
    return found.binding.method.name, dict(found.values)


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/v1/things", "/v1/things", ()),
        ("/v1/{name=things/*}", "/v1/things/a", ("things/a",)),
        ("/v1/{name=things/*}", "/v1/things/a/b", None),
        ("/v1/{name=things/*}", "/v1/things/", None),
        ("/v1/{name=things/*}", "/v1/things", None),
        ("/v1/{name=things/*}", "/v2/things/a", None),
        ("/v1/{name=things/*}", "x/v1/things/a", None),
        ("/v1/{id}", "/v1/a", ("a",)),
        ("/v1/{id}", "/v1/a/b", None),
        ("/v1/{a.b=x/*}/{c}", "/v1/x/1/2", ("x/1", "2")),
        ("/v1/{path=**}", "/v1/a/b/c", ("a/b/c",)),
        ("/v1/{path=files/**}/end", "/v1/files/a/b/end", ("files/a/b",)),
        ("/v1/a.b", "/v1/axb", None),
        ("/v1/*/x", "/v1/anything/x", ()),
    ],
)
def test_a_template_matches_whole_paths(template: str, path: str, values: tuple[str, ...] | None) -> None:
    assert Template.parse(template).match(path) == values


def test_a_template_has_its_verb_and_its_fields() -> None:
    found = Template.parse("/v1/{name=things/*}:undelete")
    assert (found.verb, found.fields) == ("undelete", ("name",))
    assert Template.parse("/v1/things:watch").verb == "watch"
    assert Template.parse("/v1/{a.b=x/*}/{c}").fields == ("a.b", "c")


@pytest.mark.parametrize("text", ["v1/things", "", "/v1/{name", "/v1/{Name=x/*}", "/v1/a b", "/v1/{n={m}}", "/v1/***"])
def test_a_template_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UnfitTemplate, match="the path template"):
        Template.parse(text)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/v1/a:b", ("/v1/a", "b")),
        ("/v1/a:b:c", ("/v1/a:b", "c")),
        ("/v1/a:b/c", ("/v1/a:b/c", "")),
        ("/v1/a", ("/v1/a", "")),
        ("/v1/a%3Ab", ("/v1/a%3Ab", "")),
        ("/v1/a:", ("/v1/a:", "")),
    ],
)
def test_a_verb_begins_at_the_last_colon_of_the_last_segment(path: str, parts: tuple[str, str]) -> None:
    assert split_verb(path) == parts


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_name_is_decoded_as_it_was_encoded(name: str) -> None:
    encoded = quote(name, safe="")
    if "/" in name or name in (".", ".."):
        with pytest.raises(InvalidField, match="over gRPC"):
            decode("name", encoded)
    else:
        assert decode("name", encoded) == name


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("a%", "hexadecimal"),
        ("a%2", "hexadecimal"),
        ("a%zz", "hexadecimal"),
        ("a%2fb", "encoded slash"),
        ("a%2Fb", "encoded slash"),
        ("%ff", "UTF-8"),
        ("%c3", "UTF-8"),
        ("things/..", '"." and ".."'),
        ("things/.", '"." and ".."'),
        ("things/%2e%2E", '"." and ".."'),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_by_its_field(value: str, named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        decode("sandbox.name", value)
    assert caught.value.field == "sandbox.name" and named in caught.value.message


@pytest.mark.parametrize(
    ("verb", "path", "method", "values"),
    [
        ("POST", "/v1/sandboxes", "CreateSandbox", {}),
        ("GET", "/v1/sandboxes", "ListSandboxes", {}),
        ("GET", "/v1/sandboxes/a", "GetSandbox", {"name": "sandboxes/a"}),
        ("HEAD", "/v1/sandboxes/a", "GetSandbox", {"name": "sandboxes/a"}),
        ("GET", "/v1/sandboxes:watch", "WatchSandboxes", {}),
        ("GET", "/v1/sandboxes/a%3Awatch", "GetSandbox", {"name": "sandboxes/a:watch"}),
        ("PATCH", "/v1/sandboxes/a", "UpdateSandbox", {"sandbox.name": "sandboxes/a"}),
        ("DELETE", "/v1/sandboxes/%61", "DeleteSandbox", {"name": "sandboxes/a"}),
        ("POST", "/v1/sandboxes/a:undelete", "UndeleteSandbox", {"name": "sandboxes/a"}),
        ("POST", "/v1/sandboxes/a:acquireLease", "AcquireLease", {"name": "sandboxes/a"}),
    ],
)
def test_each_path_of_the_contract_is_its_method(verb: str, path: str, method: str, values: dict[str, str]) -> None:
    assert route(verb, path) == (method, values)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/v1/sandboxes/", "/v1//sandboxes", "/v1/sandboxes/a/b", "/V1/sandboxes", "/v1/sandboxes:",
     "/v1/sandboxes:Watch", "/v1/sandboxes/a:nothing", "/v1/%73andboxes", "/v1/../v1/sandboxes", "*",
     "/v1/sandboxes/:undelete"],
)  # fmt: skip
def test_other_paths_are_none(path: str) -> None:
    with pytest.raises(NoSuchPath) as caught:
        ROUTES.find("POST", path)
    assert repr(path) in caught.value.message


def test_a_colon_that_is_no_verb_is_named() -> None:
    with pytest.raises(NoSuchPath, match=r"the paths are /v1/.*; after a colon stands a verb, here 'nothing': .* %3A"):
        ROUTES.find("GET", "/v1/sandboxes/a:nothing")


def test_a_verb_that_a_path_does_not_take_is_refused_with_those_it_takes() -> None:
    with pytest.raises(NoSuchVerb) as caught:
        ROUTES.find("PUT", "/v1/sandboxes")
    assert set(caught.value.allowed.split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    with pytest.raises(NoSuchVerb) as caught:
        ROUTES.find("GET", "/v1/sandboxes/a:undelete")
    assert caught.value.allowed == "POST, OPTIONS"
    assert allowed(["DELETE"]) == ["DELETE", "OPTIONS"]


def test_every_method_of_the_contract_has_a_path() -> None:
    assert {binding.method.name for binding in ROUTES} == set(CONTRACT.methods)
