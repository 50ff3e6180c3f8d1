"""A client that knows one endpoint and one schema version and stays there for years, whatever moves behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc.channel import Channel
from libs.sandboxes.schema import SCHEMAS
from tests.acceptance.talk import COLLECTION, Talk, create, get, update

RECORDS = 6
"""Records of each client, in several buckets."""


@dataclass
class OldClient:
    """Runs `step` once in each phase: its writes of the previous phase are there, and its requests are still known."""

    way: Channel
    tag: str
    version: int = SCHEMAS.newest
    says: Sequence[tuple[str, str]] = ()
    """Metadata of its calls. It works on sandboxes of the newest version; requests and answers are in its own
    version."""
    _last: dict[str, tuple[pb.CreateSandboxRequest | pb.UpdateSandboxRequest, Sandbox]] = field(default_factory=dict)
    """The last write and its answer, by id."""

    async def step(self) -> str:
        """The problem, or ""."""
        talk = Talk([self.way], self.tag, says=self.says)
        try:
            if not self._last:
                await self._begin(talk)
            for made_id, (request, answer) in self._last.items():
                await self._go_on(talk, made_id, request, answer)
            await self._look_around(talk)
        except (AssertionError, grpc.aio.AioRpcError) as error:
            return f"{error!r}"
        return ""

    async def _begin(self, talk: Talk) -> None:
        for number in range(RECORDS):
            made_id = f"{self.tag}-{number}"
            request = create(made_id, str(uuid4()), labels={"client": self.tag, "steps": "0"})
            self._last[made_id] = (request, await self._asked(talk, request))

    async def _go_on(
        self, talk: Talk, made_id: str, request: pb.CreateSandboxRequest | pb.UpdateSandboxRequest, answer: Sandbox
    ) -> None:
        assert await self._asked(talk, request) == answer, (
            f"{made_id}: a retry from the phase before had another answer"
        )
        assert await self._asked(talk, get(made_id)) == answer, f"{made_id}: is not as it was left"
        steps = str(int(answer.labels["steps"]) + 1)
        labels = {"client": self.tag, "steps": steps}
        change = update(made_id, "labels", labels=labels, etag=answer.etag, request_id=str(uuid4()))
        changed = await self._asked(talk, change)
        assert (changed.uid, changed.labels["steps"]) == (answer.uid, steps), f"{made_id}: another record"
        assert changed.revision > answer.revision, f"{made_id}: its revision did not grow"
        old = update(made_id, "labels", etag=answer.etag)
        await talk.refused(self._spoken(old), "ABORTED", "ETAG_MISMATCH")
        self._last[made_id] = (change, changed)

    async def _look_around(self, talk: Talk) -> None:
        """All of its records are in one list, as they were answered, and the old service's records too."""
        found = await talk.ok(pb.ListSandboxesRequest(filter=f'labels.client = "{self.tag}"'))
        assert {each.name: self._understood(each) for each in found.sandboxes} == {
            COLLECTION + made_id: answer for made_id, (_, answer) in self._last.items()
        }, "the list is not what was written"
        assert (await self._asked(talk, get("sb-0001"))).account == "globex"

    async def _asked(self, talk: Talk, request: Message) -> Sandbox:
        return self._understood(await talk.ok(self._spoken(request)))

    def _spoken(self, request: Message) -> Message:
        """The request in this client's version."""
        if self.version == SCHEMAS.newest or not isinstance(request, pb.CreateSandboxRequest | pb.UpdateSandboxRequest):
            return request
        spoken = type(request).FromString(request.SerializeToString())
        flat = SCHEMAS.write(spoken.sandbox, self.version)
        spoken.sandbox.Clear()
        spoken.sandbox.MergeFromString(flat)
        if isinstance(spoken, pb.UpdateSandboxRequest):
            names = {"labels": "metadata"}
            spoken.update_mask.paths[:] = [names[path] for path in spoken.update_mask.paths]
        return spoken

    def _understood(self, answer: Sandbox) -> Sandbox:
        assert answer.schema_version == self.version, f"{answer.name}: is in version {answer.schema_version}"
        return SCHEMAS.model_of_request(answer, self.version)
