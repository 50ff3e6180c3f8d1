"""Headers as metadata, and methods as metrics: values that a stranger chooses have a form and a limit."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from starlette.datastructures import Headers

from libs.errors import InvalidField
from libs.http.asgi import metadata_of
from libs.http.opening import measured
from libs.rpc.limits import METADATA_BYTES
from tests.http_client import ask
from tests.system.http import JSON, OPEN, http_door
from tests.system.store import CONTRACT, SANDBOXES, running_store
from tests.system.whole import running_system

REFUSED = {
    "no name of metadata": ({"baton-a!b": "x"}, "baton-a!b"),
    "binary metadata": ({"baton-x-bin": "abc"}, "baton-x-bin"),
    "more than travels in a call": ({"traceparent": "a" * METADATA_BYTES}, "bytes of metadata"),
}
"""Headers that cannot travel on by gRPC, and a word of their error."""


@pytest.mark.parametrize("sent", list(REFUSED))
async def test_headers_that_cannot_travel_on_by_grpc_are_refused_by_name(sent: str) -> None:
    """At the old service, which passes a list on to the router."""
    headers, word = REFUSED[sent]
    async with (
        running_system(SANDBOXES) as system,
        running_store(router=system.router.address, old=True) as old,
        http_door(CONTRACT, old.service, old.server, default_schema=1) as listener,
    ):
        found = await ask(listener.address, "GET", "/v1/sandboxes", None, headers)
        assert (found.status, word in found.json()["error"]["message"]) == (400, True), found.body
        assert (await ask(listener.address, "GET", "/v1/sandboxes", None, {"baton-client": "me"})).status == 200


def test_headers_that_are_no_metadata_count_for_nothing() -> None:
    assert metadata_of(Headers({"cookie": "x" * METADATA_BYTES, "x!-bin": "y", "baton-client": "me"})) == (
        ("baton-client", "me"),
    )
    with pytest.raises(InvalidField):
        metadata_of(Headers({"baton-a": "x" * METADATA_BYTES}))


def test_methods_that_a_stranger_makes_up_share_one_series() -> None:
    class Meter:
        def __init__(self) -> None:
            self.seen: list[dict[str, Any]] = []

        def create_histogram(self, *_: str, **__: Any) -> Any:
            return self

        def record(self, _: float, attributes: dict[str, Any]) -> None:
            self.seen.append(attributes)

    meter = Meter()
    measure = measured(cast("Any", meter))
    for verb in ("GET", "FOO", "BAR", "get"):
        measure(verb, "other", 405, 0.1)
    assert [one["http.request.method"] for one in meter.seen] == ["GET", "_OTHER", "_OTHER", "_OTHER"]


@pytest.mark.parametrize("kind", ["store", "router", "old store"])
async def test_a_cache_is_told_that_answers_depend_on_the_schema_version(kind: str) -> None:
    async with OPEN[kind]() as door:
        two = {"sandbox-schema-version": "2"}
        made = json.dumps({"account": "acme", "spec": {"image": "image:1"}}).encode()
        path = "/v1/sandboxes?sandboxId=one"
        etag = (await ask(door.address, "POST", path, made, {"content-type": JSON, **two})).headers["etag"]
        for more, status in (({}, 200), (two, 200), ({"if-none-match": etag}, 304)):
            found = await ask(door.address, "GET", "/v1/sandboxes/one", None, more)
            assert (found.status, found.headers["vary"]) == (status, "sandbox-schema-version")
        assert (await ask(door.address, "GET", "/v1/sandboxes")).headers["vary"] == "sandbox-schema-version"
