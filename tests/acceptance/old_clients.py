"""A client that knows one endpoint and stays there for years, whatever moves behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

import grpc

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc.channel import Channel
from tests.acceptance.talk import COLLECTION, Talk, create, get, update

RECORDS = 6
"""Of its own, in several buckets."""


@dataclass
class OldClient:
    """`step` once in each phase: what it wrote in the phase before is there, its requests of then are known."""

    way: Channel
    tag: str
    _last: dict[str, tuple[pb.CreateSandboxRequest | pb.UpdateSandboxRequest, Sandbox]] = field(default_factory=dict)
    """By id: the last write and its answer."""

    async def step(self) -> str:
        """What was wrong; "" when nothing was."""
        talk = Talk([self.way], self.tag)
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
            request = create(made_id, str(uuid4()), labels={"client": self.tag}, annotations={"steps": "0"})
            self._last[made_id] = (request, await talk.ok(request))

    async def _go_on(
        self, talk: Talk, made_id: str, request: pb.CreateSandboxRequest | pb.UpdateSandboxRequest, answer: Sandbox
    ) -> None:
        assert await talk.ok(request) == answer, f"{made_id}: a retry from the phase before had another answer"
        assert await talk.ok(get(made_id)) == answer, f"{made_id}: is not as it was left"
        steps = str(int(answer.annotations["steps"]) + 1)
        change = update(made_id, "annotations", annotations={"steps": steps}, etag=answer.etag, request_id=str(uuid4()))
        changed = await talk.ok(change)
        assert (changed.uid, changed.annotations["steps"]) == (answer.uid, steps), f"{made_id}: another record"
        assert changed.revision > answer.revision, f"{made_id}: its revision did not grow"
        old = update(made_id, "annotations", etag=answer.etag)
        await talk.refused(old, "ABORTED", "ETAG_MISMATCH")
        self._last[made_id] = (change, changed)

    async def _look_around(self, talk: Talk) -> None:
        """All that is its own is in one list, as it was answered; what the old service had is there too."""
        found = await talk.ok(pb.ListSandboxesRequest(filter=f'labels.client = "{self.tag}"'))
        assert {each.name: each for each in found.sandboxes} == {
            COLLECTION + made_id: answer for made_id, (_, answer) in self._last.items()
        }, "the list is not what was written"
        assert (await talk.ok(get("sb-0001"))).account == "globex"
