"""The parts of an OpenAPI document that are the same for every contract: HTTP's own words at this listener.

They say what `libs.http.rest`, `libs.http.events` and `libs.http.errors` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2

from libs.http.errors import HTTP_CODES
from libs.http.json_schema import Schema, Schemas
from libs.rpc import metadata

IDEMPOTENCY_KEY = "Idempotency-Key"
IF_MATCH = "If-Match"
IF_NONE_MATCH = "If-None-Match"
LAST_EVENT_ID = "Last-Event-ID"
ALWAYS = ("X-Server-Timeout", "Prefer", metadata.EXPLAIN, metadata.CLIENT, metadata.TRACEPARENT)
"""Headers that every operation takes."""

_ETAG_PATTERN = '^"[^"]+"$'


def header(name: str, description: str, schema: Schema, example: Any = None) -> Schema:
    """A parameter."""
    found = {"name": name, "in": "header", "description": description, "schema": schema}
    return found if example is None else found | {"example": example}


PARAMETERS: Mapping[str, Schema] = MappingProxyType(
    {
        parameter["name"]: parameter
        for parameter in (
            header(
                "X-Server-Timeout",
                "The deadline of this call, in seconds from now.",
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e6},
                2,
            ),
            header(
                "Prefer",
                "`wait=2` is a deadline of 2 seconds, as `X-Server-Timeout`, which wins if both are given. Other"
                " preferences are ignored.",
                {"type": "string"},
                "wait=2",
            ),
            header(
                metadata.EXPLAIN,
                "`1`: the answer's headers, or the error's, say which store answered and why.",
                {"type": "string"},
                "1",
            ),
            header(
                metadata.CLIENT,
                "A name that the caller gives itself. Operators see it where callers of an old schema version, or of"
                " the old service's own listener, are listed.",
                {"type": "string", "pattern": "^[ -~]*$"},
            ),
            header(metadata.TRACEPARENT, "W3C trace context.", {"type": "string", "pattern": "^[ -~]*$"}),
            header(
                IDEMPOTENCY_KEY,
                "The request's id, a UUID: a repeated call with the same one has one effect and gets the same answer."
                " It says the same as the field `requestId`; if both are given they must be equal.",
                {"type": "string", "format": "uuid"},
            ),
            header(
                IF_MATCH,
                "The ETag of a former answer: the write is refused with 409 if there was another write since.",
                {"type": "string", "pattern": _ETAG_PATTERN},
            ),
            header(
                IF_NONE_MATCH,
                "The ETag of a former answer: 304 without a body if it is still the newest.",
                {"type": "string"},
            ),
            header(
                LAST_EVENT_ID,
                "The id of the newest event, to go on from there. A browser's EventSource sends it. It says the same as"
                " the field `resumeToken`.",
                {"type": "string"},
            ),
        )
    }
)

HEADERS: Mapping[str, Schema] = MappingProxyType(
    {
        "ETag": {
            "description": "Names the newest write of the record, quotes included, as the field `etag` does.",
            "schema": {"type": "string", "pattern": _ETAG_PATTERN},
        },
        "Retry-After": {
            "description": "Seconds after which a later try can help.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "Age": {
            "description": "Seconds by which a stale answer may be behind at most.",
            "schema": {"type": "integer", "minimum": 0},
        },
        "Deprecation": {
            "description": "The call uses something that ends one day (RFC 9745); `Baton-Deprecated` says what.",
            "schema": {"type": "string"},
        },
        "Baton-Deprecated": {
            "description": "What the caller must change, in words.",
            "schema": {"type": "string"},
        },
        "Baton-Stale": {
            "description": "`1`: the answer comes from a copy and may lack the newest writes. `0`, for a caller who"
            f" asked by `{metadata.EXPLAIN}`: it does not.",
            "schema": {"type": "string", "enum": ["0", "1"]},
        },
        "Baton-Age-Seconds": {
            "description": "As Age, with fractions.",
            "schema": {"type": "number", "minimum": 0},
        },
        "Baton-Version": {
            "description": "`term-revision` of the record that the answer shows, if it is stale, a repeated one, or"
            f" `{metadata.EXPLAIN}` asks.",
            "schema": {"type": "string"},
        },
        "Baton-Store": {
            "description": f"Which store answered, if `{metadata.EXPLAIN}` asks.",
            "schema": {"type": "string"},
        },
        "Baton-Reason": {
            "description": f"The rule that chose the store, if `{metadata.EXPLAIN}` asks the router.",
            "schema": {"type": "string"},
        },
        "Baton-Phase": {
            "description": f"The phase of the migration, if `{metadata.EXPLAIN}` asks the router.",
            "schema": {"type": "string"},
        },
    }
)

_OF_ANSWERS = tuple(name for name in HEADERS if name not in ("ETag", "Retry-After"))
_RETRIABLE = (409, 429, 503)

_BY_HTTP_ONLY: Mapping[int, str] = MappingProxyType(
    {
        413: "The body is too large.",
        415: "The body is not JSON in UTF-8, or it is compressed.",
    }
)
_MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        400: "The request is not valid, or it is not possible in the record's present state.",
        404: "There is no such record.",
        409: "The record exists already, or another write came first.",
        429: "There are too many calls, or a store is full.",
        500: "Something went wrong inside the server.",
        503: "The server, or the store that owns the record, is out of reach. A write may have had its effect: repeat"
        " it with the same request id.",
        504: "The deadline has passed. A write may have had its effect: repeat it with the same request id.",
    }
)

_DETAILS: tuple[Descriptor, ...] = (
    error_details_pb2.ErrorInfo.DESCRIPTOR,
    error_details_pb2.BadRequest.DESCRIPTOR,
    error_details_pb2.PreconditionFailure.DESCRIPTOR,
    error_details_pb2.RetryInfo.DESCRIPTOR,
)


def error_codes(*, keyed: bool, writes: bool, body: bool) -> list[int]:
    """The HTTP codes of the errors that can come. `keyed`: the path names a record."""
    found = {400, 429, 500, 503, 504}
    found |= {404} if keyed else set()
    found |= {409} if writes else set()
    found |= {413, 415} if body else set()
    return sorted(found)


def error_response(code: int) -> Schema:
    """By AIP-193."""
    statuses = [status.name for status, http in HTTP_CODES.items() if http == code]
    text = _BY_HTTP_ONLY.get(code) or f"{_MEANINGS[code]} Status: {', '.join(statuses)}."
    names = (*(("Retry-After",) if code in _RETRIABLE else ()), *_OF_ANSWERS)
    return {
        "description": text,
        "headers": header_references(names),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def answer_headers(*, etag: bool) -> Schema:
    return header_references((*(("ETag",) if etag else ()), *_OF_ANSWERS))


def header_references(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def parameter_reference(name: str) -> Schema:
    return {"$ref": f"#/components/parameters/{name}"}


def add_error(schemas: Schemas) -> None:
    """The body of every error, as the schema Error."""
    details = []
    for kind in _DETAILS:
        schemas.reference(kind)
        schema = schemas.found[kind.full_name]
        schema["properties"] = {"@type": {"const": f"type.googleapis.com/{kind.full_name}"}} | schema["properties"]
        schema["required"] = ["@type"]
        details.append({"$ref": f"#/components/schemas/{kind.full_name}"})
    other = {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]}
    schemas.found["Error"] = {
        "type": "object",
        "description": "An error, by https://google.aip.dev/193.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "status", "message", "details"],
                "properties": {
                    "code": {"type": "integer", "description": "The HTTP code of the response."},
                    "status": {
                        "type": "string",
                        "description": "The same over every protocol.",
                        "enum": [status.name for status in grpc.StatusCode if status is not grpc.StatusCode.OK],
                    },
                    "message": {"type": "string", "description": "The field, its value and the remedy."},
                    "details": {
                        "type": "array",
                        "description": "ErrorInfo comes with every error: its `reason` is stable, for programs.",
                        "items": {"anyOf": [*details, other]},
                    },
                },
            }
        },
        "examples": [
            {
                "error": {
                    "code": 400,
                    "status": "INVALID_ARGUMENT",
                    "message": "pageSize: 'x' is not valid: a whole number of -2147483648 to 2147483647",
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                            "reason": "INVALID_FIELD",
                            "domain": "baton",
                            "metadata": {"field": "pageSize"},
                        }
                    ],
                }
            }
        ],
    }
