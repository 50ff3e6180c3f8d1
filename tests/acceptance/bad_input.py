"""Requests that no endpoint takes, each with the one field that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from tests.acceptance.talk import acquire, create, delete, get, release, renew, undelete, update

Bad = Callable[[str], Message]
"""From the id of a sandbox that does not exist."""


def _made(**fields: Any) -> Bad:
    return lambda made_id: create(made_id, **fields)


def _with_spec(**fields: Any) -> Bad:
    return lambda made_id: create(made_id, spec=SandboxSpec(**fields))


def _named(made_id: str) -> Bad:
    return lambda _: create(made_id)


def _incomplete(**fields: Any) -> Bad:
    """With nothing but these."""
    return lambda made_id: pb.CreateSandboxRequest(sandbox=Sandbox(**fields), sandbox_id=made_id)


def _with_missing(request: pb.UpdateSandboxRequest | pb.DeleteSandboxRequest) -> Message:
    request.allow_missing = True
    return request


BAD_INPUT: Sequence[tuple[Bad, str]] = (
    (_named("Upper"), "sandbox_id"),
    (_named("-first"), "sandbox_id"),
    (_named("x" * 64), "sandbox_id"),
    (_named("ünïcode"), "sandbox_id"),
    (_named("a/b"), "sandbox_id"),
    (_incomplete(spec=SandboxSpec(image="image:1")), "sandbox.account"),
    (_made(account="no spaces"), "sandbox.account"),
    (_made(account="ö"), "sandbox.account"),
    (_made(account="x" * 65), "sandbox.account"),
    (_made(state=99), "sandbox.state"),
    (_made(state=-1), "sandbox.state"),
    (_made(request_id="nonsense"), "request_id"),
    (_made(labels={"Upper": "x"}), "sandbox.labels key"),
    (_made(labels={"a": "UPPER"}), "sandbox.labels['a']"),
    (_made(labels={f"l{n}": "x" for n in range(65)}), "sandbox.labels"),
    (_made(annotations={"": "x"}), "sandbox.annotations key"),
    (_made(annotations={"a": "nul\0"}), "sandbox.annotations['a']"),
    (_made(annotations={"a": "x" * 300_000}), "sandbox.annotations"),
    (_incomplete(account="acme"), "sandbox.spec.image"),
    (_with_spec(image="with space"), "sandbox.spec.image"),
    (_with_spec(image="x" * 513), "sandbox.spec.image"),
    (_with_spec(command=["x"] * 129), "sandbox.spec.command"),
    (_with_spec(command=["x" * 5000]), "sandbox.spec.command[0]"),
    (_with_spec(env={"1ST": "x"}), "sandbox.spec.env key"),
    (_with_spec(env={"A": "nul\0"}), "sandbox.spec.env['A']"),
    (_with_spec(cpu_millis=-1), "sandbox.spec.cpu_millis"),
    (_with_spec(memory_mib=-1), "sandbox.spec.memory_mib"),
    (_with_spec(memory_mib=1 << 40), "sandbox.spec.memory_mib"),
    (_with_spec(timeout=Duration(seconds=-1)), "sandbox.spec.timeout"),
    (_with_spec(timeout=Duration(nanos=2_000_000_000)), "sandbox.spec.timeout"),
    (lambda _: pb.GetSandboxRequest(), "name"),
    (lambda _: pb.GetSandboxRequest(name="boxes/x"), "name"),
    (lambda _: get("nul\0"), "name"),
    (lambda _: get("x" * 247), "name"),
    (lambda made_id: pb.GetSandboxRequest(name=made_id), "name"),
    (lambda _: pb.UpdateSandboxRequest(), "sandbox.name"),
    (lambda _: pb.UpdateSandboxRequest(sandbox=Sandbox(name="sandboxes/")), "sandbox.name"),
    (lambda _: _with_missing(update("Old Name", account="acme", spec=SandboxSpec(image="image:1"))), "sandbox.name"),
    (lambda made_id: update(made_id, etag="4"), "sandbox.etag"),
    (lambda made_id: update(made_id, "colour"), "update_mask"),
    (lambda made_id: update(made_id, labels={"a": "b"}, request_id="1"), "request_id"),
    (lambda made_id: update(made_id, "state", state=7), "sandbox.state"),
    (lambda _: pb.DeleteSandboxRequest(), "name"),
    (lambda _: _with_missing(delete("Old Name")), "name"),
    (lambda made_id: delete(made_id, etag="not quoted"), "etag"),
    (lambda made_id: delete(made_id, request_id="1"), "request_id"),
    (lambda _: pb.UndeleteSandboxRequest(name="x"), "name"),
    (lambda made_id: undelete(made_id, etag='"1"'), "etag"),
    (lambda made_id: undelete(made_id, request_id="1"), "request_id"),
    (lambda made_id: undelete(made_id, lease_token="1"), "lease_token"),
    (lambda made_id: acquire(made_id, ""), "holder"),
    (lambda made_id: acquire(made_id, "ann", seconds=0), "ttl"),
    (lambda _: acquire("", "ann"), "name"),
    (lambda made_id: renew(made_id, ""), "token"),
    (lambda made_id: release(made_id, "1"), "token"),
)
"""None of them may leave a sandbox behind."""

BAD_LISTS: Sequence[tuple[pb.ListSandboxesRequest, str]] = (
    (pb.ListSandboxesRequest(page_size=-1), "page_size"),
    (pb.ListSandboxesRequest(filter="state = SLEEPING"), "filter"),
    (pb.ListSandboxesRequest(filter="colour = RED"), "filter"),
    (pb.ListSandboxesRequest(filter='account = "unended'), "filter"),
    (pb.ListSandboxesRequest(filter='account = "a" AND account = "b"'), "filter"),
    (pb.ListSandboxesRequest(filter='labels.a = "UPPER"'), "filter labels['a']"),
    (pb.ListSandboxesRequest(filter="x" * 9000), "filter"),
    (pb.ListSandboxesRequest(page_token="nonsense"), "page_token"),
    (pb.ListSandboxesRequest(page_token="!!"), "page_token"),
    (pb.ListSandboxesRequest(page_token="ü"), "page_token"),
    (pb.ListSandboxesRequest(page_token="A" * 600), "page_token"),
)
