"""Pages: walked by tokens they show everything once; answers are made of stored bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.contract.operations import List
from libs.contract.pages import make_token
from libs.errors import InvalidField
from libs.pb.sandbox.v1 import sandbox_service_pb2
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import ListSandboxesRequest, ListSandboxesResponse
from libs.sandboxes.lists import answer_of, question_hash
from tests.unit.sandboxes import OPERATIONS, a_sandbox, context

names = st.from_regex(r"sandboxes/[a-z0-9][a-z0-9-]{0,5}", fullmatch=True)


def parsed(request: ListSandboxesRequest) -> List:
    call = OPERATIONS.parse("ListSandboxes", request.SerializeToString(), context())
    assert isinstance(call, List)
    return call


def served(request: ListSandboxesRequest, stored: list[Sandbox]) -> ListSandboxesResponse:
    """Serve the list like a backend, over a list in memory."""
    call = parsed(request)
    rest = sorted((sandbox for sandbox in stored if sandbox.name > call.page.after), key=lambda sandbox: sandbox.name)
    page = rest[: call.page.limit]
    token = make_token(page[-1].name, call.filter_hash) if len(rest) > len(page) else ""
    answer = call.answer([sandbox.SerializeToString() for sandbox in page], token)
    return ListSandboxesResponse.FromString(answer)


@given(st.sets(names, max_size=30), st.integers(1, 7))
def test_a_walk_over_the_pages_shows_everything_once(stored: set[str], page_size: int) -> None:
    sandboxes = [a_sandbox(name=name) for name in stored]
    seen: list[str] = []
    request = ListSandboxesRequest(page_size=page_size)
    for _ in range(len(stored) + 1):
        answer = served(request, sandboxes)
        seen += [sandbox.name for sandbox in answer.sandboxes]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert seen == sorted(stored)


@given(st.lists(st.binary(max_size=300), max_size=5), st.text("abc", max_size=200))
def test_an_answer_holds_the_stored_bytes_as_they_are(contents: list[bytes], token: str) -> None:
    payloads = [Sandbox(uid=content.hex()).SerializeToString() + b"\xa2\x06\x01n" for content in contents]
    data = answer_of(payloads, token)
    answer = ListSandboxesResponse.FromString(data)
    assert [sandbox.SerializeToString() for sandbox in answer.sandboxes] == payloads
    assert answer.next_page_token == token
    assert data == answer.SerializeToString()


@pytest.mark.parametrize(("asked", "limit"), [(0, 50), (1, 1), (500, 500), (501, 500), (2**31 - 1, 500)])
def test_the_size_of_a_page_is_bounded(asked: int, limit: int) -> None:
    assert parsed(ListSandboxesRequest(page_size=asked)).page.limit == limit


def test_a_list_asks_for_what_its_filter_says() -> None:
    page = parsed(ListSandboxesRequest(filter="state = FAILED", show_deleted=True)).page
    assert (page.filter.equals, page.filter.show_deleted, page.after) == ((("state", "FAILED"),), True, "")


def test_a_token_belongs_to_its_question_whatever_the_size_of_the_page() -> None:
    asked = ListSandboxesRequest(filter="state = FAILED", page_size=3)
    token = make_token("sandboxes/b", question_hash(asked))
    same = ListSandboxesRequest(filter="state = FAILED", page_size=9, page_token=token)
    assert parsed(same).page.after == "sandboxes/b"
    for other in (
        ListSandboxesRequest(filter="state = RUNNING", page_token=token),
        ListSandboxesRequest(filter="state = FAILED", show_deleted=True, page_token=token),
    ):
        with pytest.raises(InvalidField, match=r"page_token: .*another filter"):
            parsed(other)


@pytest.mark.parametrize("last", ["sandboxes/Box1", "sandboxes/a/b", "sandboxes/größe", "sandboxes/" + "x" * 246])
def test_a_page_may_end_at_any_name_that_exists(last: str) -> None:
    token = make_token(last, question_hash(ListSandboxesRequest()))
    assert parsed(ListSandboxesRequest(page_token=token)).page.after == last


def test_a_token_with_a_nul_character_is_refused() -> None:
    token = make_token("a\0b", question_hash(ListSandboxesRequest()))
    with pytest.raises(InvalidField, match="page_token"):
        parsed(ListSandboxesRequest(page_token=token))


@pytest.mark.parametrize("token", ["nonsense", "!!", "ü", "\ud7ff", "A"])
def test_a_token_that_was_never_given_is_refused(token: str) -> None:
    with pytest.raises(InvalidField, match=r"page_token: .*give back next_page_token"):
        parsed(ListSandboxesRequest(page_token=token))


def test_every_method_of_the_service_is_there() -> None:
    service = sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"]
    assert OPERATIONS.service == service.full_name
    assert sorted(OPERATIONS.methods) == sorted(method.name for method in service.methods)
