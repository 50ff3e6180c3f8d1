"""The one client suite of the sandbox contract: conversations that go the same way at every endpoint, in every phase.

A conversation asserts the promises of the contract. The suite also compares its answers across the endpoints, one by
one, texts included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import grpc
from google.protobuf.duration_pb2 import Duration

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox, Sandbox, SandboxSpec
from libs.rpc import metadata
from libs.rpc.limits import REQUEST_BYTES
from libs.sandboxes.schema import METADATA
from tests.acceptance.bad_input import BAD_INPUT, BAD_LISTS
from tests.acceptance.talk import (
    COLLECTION,
    IMAGE,
    SERVICE,
    Talk,
    acquire,
    create,
    delete,
    get,
    release,
    renew,
    sandbox,
    undelete,
    update,
)

Conversation = Callable[[Talk], Awaitable[None]]

ABSENT = ("NOT_FOUND", "SANDBOX_NOT_FOUND", "name")
EXISTS = ("ALREADY_EXISTS", "SANDBOX_ALREADY_EXISTS", "name")
INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD")
ETAG = ("ABORTED", "ETAG_MISMATCH", "etag")
REUSED = ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
HELD = ("FAILED_PRECONDITION", "LEASE_HELD", "lease")
LOST = ("FAILED_PRECONDITION", "LEASE_LOST", "lease")
TRANSITION = ("FAILED_PRECONDITION", "ILLEGAL_STATE_TRANSITION", "sandbox.state")


async def a_life(talk: Talk) -> None:
    one = talk.new_id()
    made = await talk.ok(create(one, labels={"tier": "gold"}))
    assert (made.name, made.revision, made.state) == (COLLECTION + one, 1, Sandbox.STATE_PENDING)
    assert await talk.ok(get(one)) == made
    changed = await talk.ok(update(one, "labels", labels={"tier": "silver"}))
    assert (changed.uid, changed.revision, changed.labels["tier"]) == (made.uid, 2, "silver")
    gone = await talk.ok(delete(one))
    assert gone.HasField("delete_time") and gone.revision == 3
    await talk.refused(get(one), *ABSENT)
    await talk.refused(update(one, labels={"tier": "lead"}), *ABSENT)
    await talk.refused(delete(one), *ABSENT)
    back = await talk.ok(undelete(one))
    assert (back.revision, back.HasField("delete_time")) == (4, False)
    assert await talk.ok(get(one)) == back


async def retries(talk: Talk) -> None:
    """A request that is sent again, anywhere, has one effect and gets the answer that it had."""
    one, first, second, third = talk.new_id(), talk.new_request_id(), talk.new_request_id(), talk.new_request_id()
    made = await talk.ok(create(one, first))
    change = update(one, labels={"n": "2"}, request_id=second)
    changed = await talk.ok(change)
    assert (await talk.ok(delete(one, request_id=third))).revision == 3
    for at in range(len(talk.ways)):
        assert await talk.ok(create(one, first), at=at) == made
        assert await talk.ok(create(one, first.upper()), at=at) == made
        assert await talk.ok(change, at=at) == changed
        assert (await talk.ok(delete(one, request_id=third), at=at)).revision == 3
    assert (await talk.ok(undelete(one))).revision == 4


async def a_retry_of_a_large_request(talk: Talk) -> None:
    """Its answer is not kept: the record as it is by then, and beside it the version that the request made."""
    one, request_id = talk.new_id(), talk.new_request_id()
    request = create(one, request_id, annotations={"text": "x" * 20_000})
    await talk.ok(request)
    changed = await talk.ok(update(one, "annotations", annotations={"text": "short"}))
    assert await talk.ok(request) == changed
    assert f"{metadata.VERSION}: '0-1'" in talk.heard[-1]


async def a_request_id_is_used_again(talk: Talk) -> None:
    one, request_id = talk.new_id(), talk.new_request_id()
    await talk.ok(create(one, request_id))
    for at in range(len(talk.ways)):
        await talk.refused(create(one, request_id, labels={"other": "request"}), *REUSED, at=at)
        await talk.refused(update(one, labels={"other": "method"}, request_id=request_id), *REUSED, at=at)
    assert (await talk.ok(create(talk.new_id(), request_id))).revision == 1, "it counts for one record"


async def etags(talk: Talk) -> None:
    one = talk.new_id()
    made = await talk.ok(create(one))
    assert (await talk.ok(update(one, labels={"n": "2"}, etag=made.etag))).revision == 2
    await talk.refused(update(one, labels={"n": "3"}, etag=made.etag), *ETAG)
    await talk.refused(delete(one, etag=made.etag), *ETAG)
    current = (await talk.ok(get(one))).etag
    gone = await talk.ok(delete(one, etag=current))
    await talk.refused(undelete(one, etag=current), *ETAG)
    assert (await talk.ok(undelete(one, etag=gone.etag))).revision == 4


async def it_exists(talk: Talk) -> None:
    one = talk.new_id()
    made = await talk.ok(create(one))
    await talk.refused(create(one), *EXISTS)
    await talk.refused(undelete(one), *EXISTS)
    await talk.ok(delete(one))
    again = await talk.ok(create(one))
    assert again.revision == 3 and again.uid != made.uid


async def it_does_not_exist(talk: Talk) -> None:
    one = talk.new_id()
    for request in (get(one), update(one, labels={"n": "1"}), delete(one), undelete(one)):
        await talk.refused(request, *ABSENT)


async def missing_is_allowed(talk: Talk) -> None:
    one = talk.new_id()
    missing = delete(one, allow_missing=True)
    assert await talk.ok(missing) == Sandbox()
    request = pb.UpdateSandboxRequest(sandbox=sandbox(name=COLLECTION + one), allow_missing=True)
    made = await talk.ok(request)
    # A delete that finds nothing is a write all the same.
    assert (made.revision, made.account) == (2, "acme")
    assert (await talk.ok(request)).revision == 3
    two = talk.new_id()
    request = pb.UpdateSandboxRequest(sandbox=Sandbox(name=COLLECTION + two), allow_missing=True)
    await talk.refused(request, *INVALID, "sandbox.account")
    request = pb.UpdateSandboxRequest(sandbox=sandbox(name=COLLECTION + two, etag='"0-1"'), allow_missing=True)
    await talk.refused(request, *ETAG)
    await talk.refused(get(two), *ABSENT)


async def only_validated(talk: Talk) -> None:
    one = talk.new_id()
    request = create(one)
    request.validate_only = True
    assert (await talk.ok(request)).name == COLLECTION + one
    await talk.refused(get(one), *ABSENT)
    request.sandbox.account = ""
    await talk.refused(request, *INVALID, "sandbox.account")
    made = await talk.ok(create(one))
    change = update(one, labels={"n": "2"})
    change.validate_only = True
    assert (await talk.ok(change)).labels["n"] == "2"
    assert (await talk.ok(delete(one, validate_only=True))).HasField("delete_time")
    request = create(one)
    request.validate_only = True
    await talk.refused(request, *EXISTS)
    await talk.refused(undelete(one, validate_only=True), *EXISTS)
    assert await talk.ok(get(one)) == made


async def masks(talk: Talk) -> None:
    one = talk.new_id()
    await talk.ok(create(one, labels={"a": "1"}, annotations={"note": "first"}))
    spec = SandboxSpec(memory_mib=256)
    assert (await talk.ok(update(one, "spec.memory_mib", spec=spec))).spec.cpu_millis == 500
    assert not (await talk.ok(update(one, "labels"))).labels
    assert not (await talk.ok(update(one, "spec.cpu_millis"))).spec.cpu_millis
    await talk.refused(update(one, "spec", spec=spec), *INVALID, "sandbox.spec.image")
    whole = await talk.ok(update(one, "*", spec=SandboxSpec(image="other:2"), state=Sandbox.STATE_PENDING))
    assert (whole.spec, dict(whole.annotations)) == (SandboxSpec(image="other:2"), {})
    for paths in (["colour"], ["spec.colour"], ["name"], ["uid"], ["account"], ["*", "labels"], ["labels"] * 65):
        await talk.refused(update(one, *paths, labels={"a": "2"}), *INVALID, "update_mask")
    await talk.refused(update(one, account="other"), *INVALID, "sandbox.account")
    assert await talk.ok(get(one)) == whole


async def states(talk: Talk) -> None:
    one = talk.new_id()
    await talk.ok(create(one, state=Sandbox.STATE_RUNNING))
    await talk.refused(update(one, state=Sandbox.STATE_PENDING), *TRANSITION)
    for state in (Sandbox.STATE_STOPPED, Sandbox.STATE_RUNNING, Sandbox.STATE_FAILED, Sandbox.STATE_PENDING):
        assert (await talk.ok(update(one, state=state))).state == state
    await talk.refused(create(talk.new_id(), state=Sandbox.STATE_FAILED), *TRANSITION)


async def texts_of_the_world(talk: Talk) -> None:
    one = talk.new_id()
    texts = {"greeting": "Grüße, 世界 🌍", "שלום": "e\u0301 is not é", "long": "𝄞" * 5000, "empty": ""}
    env = {"LANG": "日本語\n\ttwo lines"}
    made = await talk.ok(create(one, annotations=texts, spec=SandboxSpec(env=env, command=["echo", "ñandú"])))
    assert (dict(made.annotations), dict(made.spec.env)) == (texts, env)
    assert await talk.ok(get(one)) == made
    assert dict((await talk.ok(update(one, labels={"a": "b"}))).annotations) == texts


async def fields_of_a_newer_contract(talk: Talk) -> None:
    """Field 1000 of the sandbox and of its spec, unknown to every server, is kept through writes."""
    one = talk.new_id()
    unknown = Sandbox.FromString(b"\xc2\x3e\x05later")
    newer = sandbox()
    newer.MergeFrom(unknown)
    newer.spec.MergeFromString(b"\xc2\x3e\x04spec")
    await talk.ok(pb.CreateSandboxRequest(sandbox=newer, sandbox_id=one))
    await talk.ok(update(one, "labels", labels={"a": "b"}))
    found = await talk.ok(get(one))
    assert b"\xc2\x3e\x05later" in found.SerializeToString() and b"\xc2\x3e\x04spec" in found.spec.SerializeToString()


async def ids_are_made(talk: Talk) -> None:
    """From the request's id: the same wherever the request is sent."""
    request_id = talk.new_request_id()
    made = await talk.ok(create("", request_id))
    for at in range(len(talk.ways)):
        assert await talk.ok(create("", request_id), at=at) == made
    assert await talk.ok(pb.GetSandboxRequest(name=made.name)) == made


async def pages(talk: Talk) -> None:
    """A token of one endpoint is good at the others, and is the same there."""
    for _ in range(5):
        await talk.ok(create(talk.new_id(), labels={"talk": talk.tag}))
    asked = pb.ListSandboxesRequest(filter=f'labels.talk = "{talk.tag}"')
    everything = [found.name for found in (await talk.ok(asked)).sandboxes]
    assert (len(everything), everything) == (5, sorted(everything))
    asked.page_size = 2
    seen: list[str] = []
    for _ in range(3):
        answers = [await talk.ok(asked, at=at) for at in range(len(talk.ways))]
        assert all(answer == answers[0] for answer in answers)
        seen += [found.name for found in answers[0].sandboxes]
        asked.page_token = answers[0].next_page_token
    assert (seen, asked.page_token) == (everything, "")
    first = await talk.ok(pb.ListSandboxesRequest(filter=asked.filter, page_size=2))
    asked.filter, asked.page_token = 'labels.talk = "another"', first.next_page_token
    for at in range(len(talk.ways)):
        await talk.refused(asked, *INVALID, "page_token", at=at)


async def filters(talk: Talk) -> None:
    label = {"filtered": talk.tag}
    running, stopped, gone = talk.new_id(), talk.new_id(), talk.new_id()
    await talk.ok(create(running, labels={**label, "kind": "x"}, state=Sandbox.STATE_RUNNING))
    await talk.ok(create(stopped, labels=label, account="other"))
    await talk.ok(create(gone, labels=label))
    await talk.ok(delete(gone))
    mine = f'labels.filtered = "{talk.tag}"'
    for text, deleted, wanted in (
        (mine, False, {running, stopped}),
        (mine, True, {running, stopped, gone}),
        (f"{mine} AND state = RUNNING", False, {running}),
        (f'{mine} AND account = "other"', False, {stopped}),
        (f'{mine} AND labels.kind = "x"', False, {running}),
        (f"{mine} AND state = FAILED", True, set()),
    ):
        found = await talk.ok(pb.ListSandboxesRequest(filter=text, show_deleted=deleted))
        assert {each.name.removeprefix(COLLECTION) for each in found.sandboxes} == wanted, text


async def bad_input(talk: Talk) -> None:
    """Refused by the field's name, and nothing is left of it."""
    one = talk.new_id()
    for bad, field in BAD_INPUT:
        await talk.refused(bad(one), *INVALID, field)
    await talk.refused(get(one), *ABSENT)
    for asked, field in BAD_LISTS:
        await talk.refused(asked, *INVALID, field)


async def bad_bytes(talk: Talk) -> None:
    one = talk.new_id()
    # A name that is not UTF-8, a field that ends too early, a group that does not begin.
    for data in (b"\x0a\x02\xff\xfe", b"\x0a\x7f\x61", b"\x0c"):
        await talk.refused_raw("GetSandbox", data, *INVALID, "request")
        await talk.refused_raw("UpdateSandbox", data, *INVALID, "request")
    text = create(one, annotations={"key": "PLACE"}).SerializeToString()
    await talk.refused_raw("CreateSandbox", text.replace(b"PLACE", b"\xff\xfe\xfd\xfc\xfb"), *INVALID, "request")
    await talk.refused(get(one), *ABSENT)
    error = await talk.raw("NoSuchMethod", b"")
    assert isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED


async def too_large(talk: Talk) -> None:
    one = talk.new_id()
    envs = {f"NAME_{n}": "x" * 30_000 for n in range(20)}
    await talk.refused(create(one, spec=SandboxSpec(env=envs)), *INVALID)
    await talk.refused(create(one, annotations={"key": "x" * REQUEST_BYTES}), *INVALID, "request")
    await talk.refused(get(one), *ABSENT)
    large = {f"NAME_{n}": "x" * 30_000 for n in range(10)}
    assert len((await talk.ok(create(one, spec=SandboxSpec(env=large)))).spec.env) == 10


async def what_only_routers_may_say(talk: Talk) -> None:
    """Metadata of internal listeners is not believed on public ones."""
    one = talk.new_id()
    said = [
        (metadata.PRINCIPAL, "somebody"),
        (metadata.MADE_ID, "mine"),
        (metadata.REPLICA, "1"),
        (metadata.TOKEN, "secret"),
    ]
    made = await talk.ok(create(one), metadata=said)
    assert made.name == COLLECTION + one
    assert await talk.ok(get(one), metadata=said) == made
    await talk.refused(create(one), *EXISTS)


async def short_of_time(talk: Talk) -> None:
    """Whatever becomes of a call that its caller left, the request has one effect when it is sent again."""
    one, request_id = talk.new_id(), talk.new_request_id()
    data = create(one, request_id).SerializeToString()
    call = talk.ways[0].multi_callable(f"/{SERVICE}/CreateSandbox")
    with suppress(grpc.aio.AioRpcError):
        await call(data, timeout=0.001, metadata=grpc.aio.Metadata(*talk.says))
    assert (await talk.ok(create(one, request_id))).revision == 1
    assert (await talk.ok(get(one))).revision == 1
    # Without a deadline, and with one that is longer than any server waits.
    for timeout in (None, 7 * 24 * 3600):
        await talk.ways[0].multi_callable(f"/{SERVICE}/GetSandbox")(get(one).SerializeToString(), timeout=timeout)


async def durations(talk: Talk) -> None:
    one = talk.new_id()
    spec = SandboxSpec(timeout=Duration(seconds=90, nanos=500))
    assert (await talk.ok(create(one, spec=spec))).spec.timeout == spec.timeout
    assert (await talk.ok(update(one, "spec.timeout"))).spec.HasField("timeout") is False


async def an_older_schema_version(talk: Talk) -> None:
    """A client of version 1 writes and reads flat records of any origin, and changes nothing else."""
    one, two, old = talk.new_id(), talk.new_id(), ((METADATA, "1"),)
    flat = FlatSandbox(account="acme", image=IMAGE, cpu=0.25, metadata={"talk": talk.tag}, timeout_s=90)
    request = pb.CreateSandboxRequest(sandbox=Sandbox.FromString(flat.SerializeToString()), sandbox_id=one)
    request.request_id = talk.new_request_id()
    made = await talk.ok(request, metadata=old)
    seen = FlatSandbox.FromString(made.SerializeToString())
    assert (seen.schema_version, seen.image, seen.cpu, seen.timeout_s) == (1, IMAGE, 0.25, 90)
    for at in range(len(talk.ways)):
        assert await talk.ok(request, at=at, metadata=old) == made, "a retry"
        assert await talk.ok(get(one), at=at, metadata=old) == made
        modern = await talk.ok(get(one), at=at)
        assert (modern.schema_version, modern.spec.cpu_millis, modern.spec.timeout.seconds) == (2, 250, 90)
    await talk.ok(create(two, labels={"talk": talk.tag}, annotations={"note": "kept"}))
    change = pb.UpdateSandboxRequest(sandbox=Sandbox.FromString(FlatSandbox(image="other:2").SerializeToString()))
    change.sandbox.name = COLLECTION + two
    change.update_mask.paths.append("image")
    changed = FlatSandbox.FromString((await talk.ok(change, metadata=old)).SerializeToString())
    assert (changed.image, changed.cpu) == ("other:2", 0.5)
    now = await talk.ok(get(two))
    assert (now.spec.image, now.spec.cpu_millis, dict(now.annotations)) == ("other:2", 500, {"note": "kept"})
    asked = pb.ListSandboxesRequest(filter=f'labels.talk = "{talk.tag}"')
    listed = (await talk.ok(asked, metadata=old)).sandboxes
    assert [FlatSandbox.FromString(each.SerializeToString()).image for each in listed] == [IMAGE, "other:2"]
    change.update_mask.paths[:] = ["spec.image"]
    await talk.refused(change, *INVALID, "update_mask", metadata=old)
    await talk.refused(request, *INVALID, "sandbox")
    await talk.refused(get(one), *INVALID, METADATA, metadata=((METADATA, "3"),))


async def leases(talk: Talk) -> None:
    one, request_id = talk.new_id(), talk.new_request_id()
    await talk.refused(acquire(one, "ann"), *ABSENT)
    await talk.ok(create(one))
    held = await talk.ok(acquire(one, "ann", request_id=request_id))
    assert (held.lease.holder, held.lease.token, held.revision) == ("ann", "0.2", 2)
    assert (await talk.ok(get(one))).lease == held.lease
    for at in range(len(talk.ways)):
        assert await talk.ok(acquire(one, "ann", request_id=request_id), at=at) == held
        await talk.refused(acquire(one, "ben"), *HELD, at=at)
    assert (await talk.ok(renew(one, "0.2"))).lease.renewals == 1
    change = update(one, labels={"n": "1"})
    change.lease_token = "0.1"
    await talk.refused(change, *LOST)
    await talk.refused(delete(one, lease_token="0.1"), *LOST)
    change.lease_token = "0.2"
    assert (await talk.ok(change)).revision == 4
    assert (await talk.ok(update(one, labels={"n": "2"}))).lease.token == "0.2", "without a token it is not looked at"
    assert not (await talk.ok(release(one, "0.2"))).HasField("lease")
    await talk.refused(renew(one, "0.2"), *LOST)
    assert (await talk.ok(acquire(one, "ben"))).lease.token == "0.7"


CONVERSATIONS: Mapping[str, Conversation] = {
    talk.__name__: talk
    for talk in (
        a_life,
        retries,
        a_retry_of_a_large_request,
        a_request_id_is_used_again,
        etags,
        it_exists,
        it_does_not_exist,
        missing_is_allowed,
        only_validated,
        masks,
        states,
        texts_of_the_world,
        fields_of_a_newer_contract,
        ids_are_made,
        an_older_schema_version,
        pages,
        filters,
        bad_input,
        bad_bytes,
        too_large,
        what_only_routers_may_say,
        short_of_time,
        durations,
        leases,
    )
}
