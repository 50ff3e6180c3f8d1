"""The replication API over the wire: moving a record between stores, and reading rows."""

import asyncio

import grpc
import pytest
from google.protobuf.message import Message

from libs.backend.checks import MAX_ACKS
from libs.errors import StoreUnavailable
from libs.ownership.model import BUCKETS, Store, Version, bucket_of
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as spb
from libs.rpc.errors import reason_of
from libs.rpc.limits import ANSWER_BYTES
from libs.store.limits import OutboxLimits
from tests.system.store import SERVICE, new, refusal, running_store
from tests.waiting import eventually

A, B = record_pb2.STORE_A, record_pb2.STORE_B
NAME = "sandboxes/one"
LIST = f"/{SERVICE}/ListSandboxes"
Outcomes = pb.ReleaseRecordsResponse


async def test_a_record_is_released_and_adopted_and_then_written_at_the_other_store() -> None:
    async with running_store(Store.A) as a, running_store(Store.B) as b:
        made = await a.client.CreateSandbox(new("one"))
        released = await a.replication.ReleaseRecords(pb.ReleaseRecordsRequest(keys=[NAME, "sandboxes/none"], to=B))
        first, second = released.results
        assert (first.outcome, second.outcome) == (Outcomes.OUTCOME_RELEASED, Outcomes.OUTCOME_ABSENT)
        again = await a.replication.ReleaseRecords(pb.ReleaseRecordsRequest(keys=[NAME], to=B))
        assert again.results[0].record.version == first.record.version
        adopt = pb.AdoptRecordsRequest(records=[first.record])
        assert (await b.replication.AdoptRecords(adopt)).applied == 1
        assert (await b.replication.AdoptRecords(adopt)).old == 1
        read = await b.router.GetSandbox(spb.GetSandboxRequest(name=NAME))
        assert read == made
        gone = await b.router.DeleteSandbox(spb.DeleteSandboxRequest(name=NAME, etag=made.etag))
        assert gone.revision == 3


async def test_a_bucket_owner_moves_with_its_bucket() -> None:
    async with running_store(Store.A) as a, running_store(Store.B) as b:
        bucket = bucket_of(NAME)
        released = await a.replication.ReleaseBuckets(pb.ReleaseBucketsRequest(buckets=[bucket], to=B))
        assert [(bucket_owner.version, bucket_owner.owner) for bucket_owner in released.bucket_owners] == [(2, B)]
        adopted = await b.replication.AdoptBuckets(pb.AdoptBucketsRequest(bucket_owners=released.bucket_owners))
        assert adopted.bucket_owners == released.bucket_owners
        assert (await b.router.CreateSandbox(new("one"))).revision == 1
        found = await a.replication.ListBuckets(pb.ListBucketsRequest())
        assert [bucket_owner.bucket for bucket_owner in found.bucket_owners if bucket_owner.owner == B] == [bucket]
        refused = await a.replication.ReleaseRecords(pb.ReleaseRecordsRequest(keys=[NAME], to=B))
        assert refused.results[0].outcome == Outcomes.OUTCOME_NOT_OWNED


async def test_changes_are_pulled_until_they_are_acknowledged_by_name() -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(new("one"))
        await at.client.CreateSandbox(new("two"))
        pulled = await at.replication.PullChanges(pb.PullChangesRequest(limit=10))
        assert [change.key for change in pulled.changes] == [NAME, "sandboxes/two"]
        first = pulled.changes[0]
        names = [pb.AckChangesRequest.Name(key=first.key, version=first.version)]
        assert (await at.replication.AckChanges(pb.AckChangesRequest(changes=names))).acknowledged == 1
        left = await at.replication.PullChanges(pb.PullChangesRequest())
        assert [change.key for change in left.changes] == ["sandboxes/two"]
        status = await at.replication.GetStatus(pb.GetStatusRequest())
        assert status.outbox.entries == 1


async def test_a_pull_acknowledges_changes_unless_the_log_has_been_replaced() -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(new("one"))
        (change,) = (await at.replication.PullChanges(pb.PullChangesRequest())).changes
        names = [pb.AckChangesRequest.Name(key=change.key, version=change.version)]
        request = pb.PullChangesRequest(acknowledged=names)
        at.feed.replaced = "another log"
        assert reason_of(await refusal(at.replication.PullChanges(request)))[0] == "LOG_REPLACED"
        at.feed.replaced = ""
        assert len((await at.replication.PullChanges(pb.PullChangesRequest())).changes) == 1, "only a former log has it"
        waiting = asyncio.create_task(at.logged.wait((NAME, Version(0, 1)), 20.0, fresh=True))
        await eventually(lambda: NAME in repr(at.logged))
        pulled = await at.replication.PullChanges(request)
        assert (list(pulled.changes), pulled.takes_acknowledgements) == ([], True)
        await waiting
        assert await at.store.outbox.pull(10, 0) == []
        many = pb.PullChangesRequest(acknowledged=names * (MAX_ACKS + 1))
        assert reason_of(await refusal(at.replication.PullChanges(many)))[0] == "INVALID_FIELD"


async def test_a_pull_that_waits_for_changes_ends_when_the_process_does() -> None:
    async with running_store() as at:
        pulling = asyncio.ensure_future(at.replication.PullChanges(pb.PullChangesRequest(wait_seconds=20), timeout=30))
        await at.internal.grpc.channel_ready()
        at.serving.leaving.set()
        async with asyncio.timeout(10):
            assert not (await pulling).changes
            await at.client.CreateSandbox(new("one"))
            assert [change.key for change in (await at.replication.PullChanges(pb.PullChangesRequest())).changes]


async def test_the_rows_of_a_page_say_whether_there_are_more() -> None:
    async with running_store() as at:
        for name in ("a", "b", "c"):
            await at.client.CreateSandbox(new(name))
        request = pb.ListRecordsRequest(method=LIST, request=b"", limit=2)
        first = await at.replication.ListRecords(request)
        assert ([row.key for row in first.rows], first.full) == (["sandboxes/a", "sandboxes/b"], True)
        request.after = first.rows[-1].key
        last = await at.replication.ListRecords(request)
        assert ([row.key for row in last.rows], last.full) == (["sandboxes/c"], False)
        request.limit, request.after = 3, ""
        assert not (await at.replication.ListRecords(request)).full


async def test_asked_by_name_a_row_that_does_not_match_comes_without_its_content() -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(new("a", labels={"tier": "gold"}))
        await at.client.CreateSandbox(new("b"))
        wanted = spb.ListSandboxesRequest(filter='labels.tier = "gold"').SerializeToString()
        request = pb.ListRecordsRequest(method=LIST, request=wanted, keys=["sandboxes/a", "sandboxes/b", "sandboxes/c"])
        found = {row.key: row for row in (await at.replication.ListRecords(request)).rows}
        assert {key: row.matches for key, row in found.items()} == {"sandboxes/a": True, "sandboxes/b": False}
        assert sandbox_pb2.Sandbox.FromString(found["sandboxes/a"].item).labels == {"tier": "gold"}
        assert found["sandboxes/b"].item == b""


async def test_rows_that_are_read_together_are_cut_at_a_size() -> None:
    async with running_store() as at:
        for number in range(12):
            notes = {f"k{part}": "x" * 30_000 for part in range(8)}
            await at.client.CreateSandbox(new(f"s{number:02}", annotations=notes))
        keys = [f"sandboxes/s{number:02}" for number in range(12)]
        answer = await at.replication.ReadRecords(pb.ReadRecordsRequest(keys=keys))
        assert [row.key for row in answer.rows] == keys[: len(answer.rows)]
        assert 0 < len(answer.rows) < 12
        assert answer.ByteSize() < ANSWER_BYTES + 100_000
        released = await at.replication.ReleaseRecords(pb.ReleaseRecordsRequest(keys=keys, to=B))
        assert [result.key for result in released.results] + list(released.remaining) == keys
        assert released.remaining


async def test_export_and_digests_show_the_whole_store() -> None:
    async with running_store() as at:
        for name in ("a", "b"):
            await at.client.CreateSandbox(new(name))
        exported = await at.replication.ExportRecords(pb.ExportRecordsRequest(limit=1))
        assert ([record.key for record in exported.records], exported.more) == (["sandboxes/a"], True)
        assert exported.records[0].payload
        keys = await at.replication.ExportRecords(pb.ExportRecordsRequest(after="sandboxes/a", keys_only=True))
        assert ([record.key for record in keys.records], keys.more) == (["sandboxes/b"], False)
        assert not keys.records[0].payload
        digests = await at.replication.DigestBuckets(pb.DigestBucketsRequest())
        assert sum(bucket.records for bucket in digests.buckets) == 2
        assert {bucket.bucket for bucket in digests.buckets} == {bucket_of("sandboxes/a"), bucket_of("sandboxes/b")}


async def test_looks_show_what_two_stores_must_agree_on() -> None:
    async with running_store() as at:
        made = await at.client.CreateSandbox(new("one"))
        await at.client.CreateSandbox(new("two"))
        (look,) = (await at.replication.LookAtRecords(pb.LookAtRecordsRequest(keys=[NAME, "sandboxes/none"]))).looks
        assert (look.key, look.version.revision, look.owner, look.update_time) == (NAME, 1, A, made.update_time)
        digests = await at.replication.DigestBuckets(pb.DigestBucketsRequest(buckets=[bucket_of(NAME)], deep=True))
        assert look.digest == look.content == digests.buckets[0].digest == digests.buckets[0].content
        page = await at.replication.LookAtRecords(pb.LookAtRecordsRequest(bucket=bucket_of(NAME)))
        assert (list(page.looks), page.more) == ([look], False)


async def test_what_was_not_acknowledged_is_not_in_the_log() -> None:
    async with running_store() as at:
        await at.client.CreateSandbox(new("one"))
        (change,) = (await at.replication.PullChanges(pb.PullChangesRequest())).changes
        name = pb.AckChangesRequest.Name(key=change.key, version=change.version)
        later = pb.AckChangesRequest.Name(key=NAME, version=record_pb2.Version(revision=2))
        asked = pb.ListUnloggedRequest(changes=[name, later])
        assert list((await at.replication.ListUnlogged(asked)).changes) == [name]
        await at.replication.AckChanges(pb.AckChangesRequest(changes=[name]))
        assert not (await at.replication.ListUnlogged(asked)).changes


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("LookAtRecords", pb.LookAtRecordsRequest(bucket=BUCKETS)),
        ("LookAtRecords", pb.LookAtRecordsRequest(keys=[""])),
        ("DigestBuckets", pb.DigestBucketsRequest(deep=True)),
        ("DigestBuckets", pb.DigestBucketsRequest(buckets=range(65), deep=True)),
    ],
    ids=str,
)
async def test_a_look_at_nonsense_is_refused(method: str, request_: Message) -> None:
    async with running_store() as at:
        refused = await refusal(getattr(at.replication, method)(request_))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.parametrize(("store", "number", "bucket_owners"), [(Store.A, A, BUCKETS), (Store.B, B, 0)])
async def test_status_tells_what_the_store_is(store: Store, number: int, bucket_owners: int) -> None:
    async with running_store(store) as at:
        status = await at.replication.GetStatus(pb.GetStatusRequest())
        assert (status.store, status.serving, status.reason) == (number, True, "")
        assert (status.owned_buckets, status.schema_version, status.backend) == (bucket_owners, 2, "memory")
        assert status.now_time.ToNanoseconds() == at.clock.now() * 1e9


@pytest.mark.parametrize(("slow", "reason"), [(True, "does not answer within 0.01 s"), (False, "it is gone")])
async def test_a_store_whose_database_does_not_answer_says_so_in_time(
    monkeypatch: pytest.MonkeyPatch, slow: bool, reason: str
) -> None:
    async def census(_: object) -> None:
        if slow:
            await asyncio.Event().wait()
        raise StoreUnavailable("it is gone")

    monkeypatch.setattr("libs.backend.replication.COUNT_SECONDS", 0.01)
    async with running_store() as at:
        assert not (await at.replication.GetStatus(pb.GetStatusRequest())).uncounted
        monkeypatch.setattr(type(at.store.inspection), "census", census)
        status = await at.replication.GetStatus(pb.GetStatusRequest())
        assert (status.serving, status.uncounted, status.process != "") == (False, True, True)
        assert reason in status.reason


async def test_a_full_outbox_shows_in_the_status_and_refuses_writes() -> None:
    async with running_store(limits=OutboxLimits(entries=1)) as at:
        assert not (await at.replication.GetStatus(pb.GetStatusRequest())).outbox.full
        await at.client.CreateSandbox(new("one"))
        assert (await at.replication.GetStatus(pb.GetStatusRequest())).outbox.full
        refused = await refusal(at.client.CreateSandbox(new("two")))
        assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTBOX_FULL")


async def test_records_are_read_with_the_requests_that_they_served_for_a_copy_only() -> None:
    async with running_store(Store.A) as a:
        names = [f"sandboxes/{number:02d}" for number in range(70)]
        for name in names:
            await a.client.CreateSandbox(new(name.removeprefix("sandboxes/"), annotations={"padding": "x" * 15_000}))
        bare = await a.replication.ReadRecords(pb.ReadRecordsRequest(keys=names))
        assert not any(row.record.served for row in bare.rows)
        found: list[pb.ReadRecordsResponse.Row] = []
        while left := ["sandboxes/none", *names][len(found) :]:
            answer = await a.replication.ReadRecords(pb.ReadRecordsRequest(keys=left, with_served=True))
            assert 0 < len(answer.rows) < len(names)
            found += answer.rows
        assert [row.key for row in found] == ["sandboxes/none", *names]
        assert all(len(row.record.served) == 1 for row in found[1:])
        backwards = await a.replication.ReadRecords(pb.ReadRecordsRequest(keys=names[::-1], with_served=True))
        assert backwards.rows[0].key == names[-1] and backwards.rows[0].record.served
