"""Lists at one store's listener that are short, and records that never were."""

from __future__ import annotations

from typing import Any

import pytest

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.store import memory
from tests.system.store import new, running_store


async def test_a_list_that_matches_hardly_anything_comes_in_short_and_empty_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "LIST_ROWS", 3)
    async with running_store() as at:
        for number in range(10):
            labels = {"k": "v"} if number in (0, 8) else {}
            await at.client.CreateSandbox(new(f"s{number}", labels=labels))
        pages: list[list[str]] = []
        token = ""
        while not pages or token:
            request = pb.ListSandboxesRequest(filter='labels.k = "v"', page_token=token)
            page = await at.client.ListSandboxes(request)
            pages.append([sandbox.name for sandbox in page.sandboxes])
            token = page.next_page_token
        assert [name for page in pages for name in page] == ["sandboxes/s0", "sandboxes/s8"]
        assert [] in pages[:-1], "an empty page that is not the last one"


async def test_a_delete_of_an_absent_record_is_in_no_list_and_no_watch() -> None:
    async with running_store() as at:
        await at.client.DeleteSandbox(pb.DeleteSandboxRequest(name="sandboxes/never", allow_missing=True))
        listed = await at.client.ListSandboxes(pb.ListSandboxesRequest(show_deleted=True))
        assert list(listed.sandboxes) == []
        watch = at.client.WatchSandboxes(pb.WatchSandboxesRequest())
        steps: list[Any] = [await watch.read()]
        while not steps[-1].synced:
            steps.append(await watch.read())
        await at.client.DeleteSandbox(pb.DeleteSandboxRequest(name="sandboxes/another", allow_missing=True))
        await at.client.CreateSandbox(new("one"))
        while not any(step.sandboxes for step in steps):
            steps.append(await watch.read())
        watch.cancel()
        assert [one.name for step in steps for one in step.sandboxes] == ["sandboxes/one"]
        assert not any(name for step in steps for name in step.removed)
