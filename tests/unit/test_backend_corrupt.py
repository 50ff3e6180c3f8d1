"""A record whose content is none of the contract, from before it was refused: it harms no other record."""

from __future__ import annotations

import pytest

from libs.ownership.model import Record, Row, Store, Version, bucket_of
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.rpc.errors import reason_of
from tests.system.store import SERVICE, new, refusal, running_store

POISON = "sandboxes/poison"


@pytest.mark.parametrize("schema_version", [1, 2])
async def test_lists_go_around_a_record_that_cannot_be_read_and_calls_name_it(schema_version: int) -> None:
    async with running_store(Store.A) as at:
        for name in ("one", "two"):
            await at.client.CreateSandbox(new(name))
        version = Version(0, 7)
        row = Row(POISON, version, Store.A, version, True, b"\xff" * 5, schema_version)
        await at.store.transfers.apply([Record(row, (), Store.A, 0.0)])
        listed = await at.client.ListSandboxes(pb.ListSandboxesRequest())
        assert [one.name for one in listed.sandboxes] == ["sandboxes/one", "sandboxes/two"]
        request = rpb.ListRecordsRequest(
            method=f"{SERVICE}/ListSandboxes", request=pb.ListSandboxesRequest().SerializeToString(), limit=10
        )
        rows = {one.key: one for one in (await at.replication.ListRecords(request)).rows}
        assert (rows[POISON].matches, rows[POISON].item) == (False, b"") and rows["sandboxes/one"].matches
        for call in (
            at.client.GetSandbox(pb.GetSandboxRequest(name=POISON)),
            at.client.DeleteSandbox(pb.DeleteSandboxRequest(name=POISON)),
        ):
            refused = await refusal(call)
            assert (reason_of(refused)[0], POISON in str(refused.details())) == ("RECORD_CORRUPT", True)


async def test_a_deep_comparison_shows_a_record_that_cannot_be_read_as_another_content() -> None:
    async with running_store(Store.A) as at:
        version = Version(0, 7)
        row = Row(POISON, version, Store.A, version, True, b"\xff" * 5, 2)
        await at.store.transfers.apply([Record(row, (), Store.A, 0.0)])
        bucket = bucket_of(POISON)
        (deep,) = (await at.replication.DigestBuckets(rpb.DigestBucketsRequest(buckets=[bucket], deep=True))).buckets
        assert deep.digest != deep.content
        (look,) = (await at.replication.LookAtRecords(rpb.LookAtRecordsRequest(bucket=bucket, limit=5))).looks
        assert look.digest != look.content
