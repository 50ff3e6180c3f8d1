"""Calls of the sandbox contract on one row in memory, by the rules that every store follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import Message

from libs.contract.descriptors import Contract
from libs.contract.operations import CallContext, Read, Write, only_checked
from libs.ownership.model import BucketOwner, Call, Changed, Found, Row, Store
from libs.ownership.rules import decide_write
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.sandboxes.operations import SandboxOperations

NAME = "sandboxes/one"
REQUEST_ID = "123e4567-e89b-42d3-a456-426614174000"
OPERATIONS = SandboxOperations()
CONTRACT_SCHEMAS = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService").schemas
NEWER_FIELD = b"\xa2\x06\x05newer"
"""Field 100 of a contract that this version does not know, as bytes of the wire."""


def context(now_seconds: float = 1_700_000_000.0, request_id: str = REQUEST_ID) -> CallContext:
    return CallContext(request_id=request_id, made_id=request_id, now_seconds=now_seconds)


def a_sandbox(**fields: object) -> Sandbox:
    """A valid one; `fields` are set over it."""
    sandbox = Sandbox(
        account="ann@example",
        spec=SandboxSpec(image="repo/image:1", command=["run", "it"], env={"HOME": "/"}, cpu_millis=500),
        labels={"team": "blue"},
        annotations={"note": "hello"},
    )
    sandbox.MergeFrom(Sandbox(**fields))  # type: ignore[arg-type]
    return sandbox


def with_newer_field(message: Message) -> None:
    message.MergeFromString(NEWER_FIELD)


def parse_write(method: str, request: Message) -> Write:
    write = OPERATIONS.parse(method, request.SerializeToString(), context())
    assert isinstance(write, Write)
    return write


@dataclass
class OneRecord:
    """One record that store A owns; no request is ever a repeated one."""

    row: Row | None = None
    now_seconds: float = 1_700_000_000.0
    answers: list[bytes] = field(default_factory=list)

    def call(self, method: str, request: Message) -> Sandbox:
        """The answer. A change is kept in `row`."""
        self.now_seconds += 1
        call = OPERATIONS.parse(method, request.SerializeToString(), context(self.now_seconds))
        if isinstance(call, Read):
            return Sandbox.FromString(call.answer(self.row))
        assert isinstance(call, Write)
        found = Found(call.key, self.row, BucketOwner(1, 0, 1, Store.A))
        change = only_checked(call.change) if call.only_checks else call.change
        outcome = decide_write(found, Store.A, Call(call.key, "ann", call.request_id, call.request_hash), change)
        if isinstance(outcome, Changed):
            self.row = outcome.row
        self.answers.append(outcome.answer)
        return Sandbox.FromString(outcome.answer)
