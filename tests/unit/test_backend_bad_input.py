"""Bad requests end in INVALID_ARGUMENT with the field, and leave nothing behind."""

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from libs.backend.checks import MAX_ACKS, MAX_KEYS, MAX_RECORDS
from libs.ownership.model import Store
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.rpc.errors import reason_of
from libs.rpc.limits import REQUEST_BYTES
from tests.system.store import SERVICE, new, refusal, running_store

NAME = "sandboxes/one"


def update(*paths: str, **fields: Any) -> pb.UpdateSandboxRequest:
    request = pb.UpdateSandboxRequest(sandbox=sandbox_pb2.Sandbox(name=NAME, **fields))
    request.update_mask.paths.extend(paths)
    return request


def in_latin_1(message: Message, text: str) -> bytes:
    """The message with `text` (of two letters) in another encoding than UTF-8."""
    return message.SerializeToString().replace(text.encode(), b"\xe9\xe8")


BAD_CALLS: list[tuple[str, str, Message | bytes, str]] = [
    ("name without a collection", "GetSandbox", pb.GetSandboxRequest(name="one"), "name"),
    ("no name", "GetSandbox", pb.GetSandboxRequest(), "name"),
    ("name without an id", "DeleteSandbox", pb.DeleteSandboxRequest(name="sandboxes/"), "name"),
    ("id too long", "CreateSandbox", new("x" * 64), "sandbox_id"),
    ("id with a slash", "CreateSandbox", new("a/b"), "sandbox_id"),
    ("request id is no UUID", "CreateSandbox", new("one", request_id="1"), "request_id"),
    ("no account", "CreateSandbox", pb.CreateSandboxRequest(sandbox_id="one"), "sandbox.account"),
    ("unknown enum value", "CreateSandbox", new("one", state=77), "sandbox.state"),
    ("unknown path in mask", "UpdateSandbox", update("colour"), "update_mask"),
    ("output only path in mask", "UpdateSandbox", update("revision"), "update_mask"),
    ("negative page size", "ListSandboxes", pb.ListSandboxesRequest(page_size=-1), "page_size"),
    ("token of nobody", "ListSandboxes", pb.ListSandboxesRequest(page_token="!!"), "page_token"),
    ("filter that cannot be read", "ListSandboxes", pb.ListSandboxesRequest(filter="state ="), "filter"),
    ("not a message", "GetSandbox", b"\xff\xff\xff", "request"),
    ("name in another encoding", "GetSandbox", in_latin_1(pb.GetSandboxRequest(name="sandboxes/qq"), "qq"), "request"),
    ("message too large", "CreateSandbox", b"\x00" * (REQUEST_BYTES + 1), "request"),
]


@pytest.mark.parametrize(
    ("method", "request_", "field"), [case[1:] for case in BAD_CALLS], ids=[c[0] for c in BAD_CALLS]
)
@pytest.mark.parametrize("listener", ["public", "internal"])
async def test_a_bad_call_is_refused_by_its_field(
    listener: str, method: str, request_: Message | bytes, field: str
) -> None:
    async with running_store() as at:
        data = request_ if isinstance(request_, bytes) else request_.SerializeToString()
        refused = await refusal(getattr(at, listener).multi_callable(f"/{SERVICE}/{method}")(data))
        reason, found = reason_of(refused)
        assert (refused.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), refused.details()
        assert found["field"].startswith(field)
        assert "Traceback" not in (refused.details() or "")
        census = await at.store.inspection.census()
        assert census.records == 0
        assert (await at.store.outbox.depth()).entries == 0


async def test_a_token_belongs_to_its_question() -> None:
    async with running_store() as at:
        for name in ("a", "b"):
            await at.client.CreateSandbox(new(name))
        page = await at.client.ListSandboxes(pb.ListSandboxesRequest(page_size=1))
        other = pb.ListSandboxesRequest(page_size=1, page_token=page.next_page_token, show_deleted=True)
        assert reason_of(await refusal(at.client.ListSandboxes(other))) == ("INVALID_FIELD", {"field": "page_token"})


def bad_record(**fields: Any) -> rpb.AdoptRecordsRequest:
    base: dict[str, Any] = {"key": NAME, "version": {"revision": 1}, "owner": 1, "origin": 1}
    return rpb.AdoptRecordsRequest(records=[record_pb2.Record(**(base | fields))])


READ = pb.GetSandboxRequest(name=NAME).SerializeToString()
A, B = record_pb2.STORE_A, record_pb2.STORE_B

BAD_REPLICATION: list[tuple[str, str, Message, str]] = [
    ("too many keys", "ReadRecords", rpb.ReadRecordsRequest(keys=["k"] * (MAX_KEYS + 1)), "keys"),
    ("empty key", "ReadRecords", rpb.ReadRecordsRequest(keys=[""]), "keys"),
    ("long key", "ReadRecords", rpb.ReadRecordsRequest(keys=["k" * 257]), "keys"),
    ("key with a zero", "ReleaseRecords", rpb.ReleaseRecordsRequest(keys=["a\0b"], to=B), "keys"),
    ("release to nobody", "ReleaseRecords", rpb.ReleaseRecordsRequest(keys=["k"]), "to"),
    ("release to itself", "ReleaseRecords", rpb.ReleaseRecordsRequest(keys=["k"], to=A), "to"),
    ("release to an unknown store", "ReleaseRecords", rpb.ReleaseRecordsRequest(keys=["k"], to=9), "to"),  # type: ignore[arg-type]
    ("too many records", "AdoptRecords", rpb.AdoptRecordsRequest(records=[{}] * (MAX_RECORDS + 1)), "records"),  # type: ignore[list-item]
    ("record without key", "AdoptRecords", bad_record(key=""), "key"),
    ("record of no revision", "AdoptRecords", bad_record(version={}), "version"),
    ("record of nobody", "AdoptRecords", bad_record(owner=0), "owner"),
    ("bucket too high", "ListBuckets", rpb.ListBucketsRequest(buckets=[0, 1024]), "buckets"),
    ("bucket below zero", "DigestBuckets", rpb.DigestBucketsRequest(buckets=[-1]), "buckets"),
    ("bucket owner of no bucket", "ReleaseBuckets", rpb.ReleaseBucketsRequest(buckets=[1024], to=B), "buckets"),
    ("bucket owner to itself", "ReleaseBuckets", rpb.ReleaseBucketsRequest(buckets=[1], to=A), "to"),
    (
        "adopted bucket owner of no bucket",
        "AdoptBuckets",
        rpb.AdoptBucketsRequest(bucket_owners=[record_pb2.BucketOwner(bucket=-3)]),
        "bucket",
    ),
    (
        "adopted bucket owner of nobody",
        "AdoptBuckets",
        rpb.AdoptBucketsRequest(bucket_owners=[record_pb2.BucketOwner(bucket=3)]),
        "owner",
    ),
    ("negative limit", "PullChanges", rpb.PullChangesRequest(limit=-1), "limit"),
    ("limit too high", "ExportRecords", rpb.ExportRecordsRequest(limit=MAX_RECORDS + 1), "limit"),
    ("export of no bucket", "ExportRecords", rpb.ExportRecordsRequest(buckets=[5000]), "buckets"),
    ("long wait", "PullChanges", rpb.PullChangesRequest(wait_seconds=60), "wait_seconds"),
    ("wait that is no number", "PullChanges", rpb.PullChangesRequest(wait_seconds=float("nan")), "wait_seconds"),
    ("too many acks", "AckChanges", rpb.AckChangesRequest(changes=[{}] * (MAX_ACKS + 1)), "changes"),  # type: ignore[list-item]
    ("negative limit of parked", "ListParked", rpb.ListParkedRequest(limit=-1), "limit"),
    ("list of another contract", "ListRecords", rpb.ListRecordsRequest(method="/x.Y/ListZ"), "method"),
    (
        "list by a method that reads one",
        "ListRecords",
        rpb.ListRecordsRequest(method=f"/{SERVICE}/GetSandbox", request=READ),
        "method",
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "field"), [case[1:] for case in BAD_REPLICATION], ids=[c[0] for c in BAD_REPLICATION]
)
async def test_a_bad_request_of_the_router_is_refused_by_its_field(method: str, request_: Message, field: str) -> None:
    async with running_store(Store.A) as at:
        refused = await refusal(getattr(at.replication, method)(request_))
        assert (refused.code(), reason_of(refused)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            ("INVALID_FIELD", {"field": field}),
        )
        assert (await at.store.inspection.census()).records == 0
