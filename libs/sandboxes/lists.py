"""Lists: the page of a request, and the response made from stored bytes."""

from __future__ import annotations

from collections.abc import Sequence

from libs.contract.operations import List
from libs.contract.pages import Page, filter_hash, read_token
from libs.errors import InvalidField
from libs.pb.sandbox.v1.sandbox_service_pb2 import ListSandboxesRequest, ListSandboxesResponse
from libs.sandboxes.filter import parse_filter

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500

_BYTES = 2
_FIELDS = ListSandboxesResponse.DESCRIPTOR.fields_by_name
_ITEM_TAG = bytes([_FIELDS["sandboxes"].number << 3 | _BYTES])
_TOKEN_TAG = bytes([_FIELDS["next_page_token"].number << 3 | _BYTES])


def page_of(request: ListSandboxesRequest) -> List:
    if request.page_size < 0:
        raise InvalidField("page_size", request.page_size, f"0 for {DEFAULT_PAGE_SIZE}, or 1 to {MAX_PAGE_SIZE}")
    query = parse_filter(request.filter, show_deleted=request.show_deleted)
    question = question_hash(request)
    after = read_token(request.page_token, question)
    limit = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    return List(Page(query, after, limit), question, answer_of)


def question_hash(request: ListSandboxesRequest) -> bytes:
    """Hash of the list request without page token and page size."""
    question = ListSandboxesRequest()
    question.CopyFrom(request)
    question.ClearField("page_size")
    question.ClearField("page_token")
    return filter_hash("ListSandboxes", question.SerializeToString(deterministic=True))


def answer_of(payloads: Sequence[bytes], next_page_token: str) -> bytes:
    """Serialize a ListSandboxesResponse. The payloads are inserted unchanged, so fields of a newer contract survive."""
    parts = [part for payload in payloads for part in (_ITEM_TAG, _length(payload), payload)]
    if next_page_token:
        token = next_page_token.encode()
        parts += (_TOKEN_TAG, _length(token), token)
    return b"".join(parts)


def _length(data: bytes) -> bytes:
    """Encode the length as a varint."""
    size = len(data)
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
