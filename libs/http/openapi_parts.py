"""Parts of an OpenAPI document that are the same for every contract: headers and errors over HTTP.

They describe `libs.http.rest`, `libs.http.events` and `libs.http.errors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.rpc import error_details_pb2

from libs.http.asgi import SECURITY
from libs.http.errors import HTTP_CODES
from libs.http.json_schema import Schema, Schemas
from libs.rpc import metadata

IDEMPOTENCY_KEY = "Idempotency-Key"
IF_MATCH = "If-Match"
IF_NONE_MATCH = "If-None-Match"
LAST_EVENT_ID = "Last-Event-ID"
ALWAYS = ("X-Server-Timeout", "Prefer", metadata.EXPLAIN, metadata.CLIENT, metadata.TRACEPARENT)
"""Headers of every operation."""

_ETAG_PATTERN = '^"[^"]+"$'


def header(name: str, description: str, schema: Schema, example: Any = None) -> Schema:
    found = {"name": name, "in": "header", "description": description, "schema": schema}
    return found if example is None else found | {"example": example}


PARAMETERS: Mapping[str, Schema] = MappingProxyType(
    {
        parameter["name"]: parameter
        for parameter in (
            header(
                "X-Server-Timeout",
                "Deadline of this call, in seconds from now.",
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e6},
                2,
            ),
            header(
                "Prefer",
                "`wait=2` sets a deadline of 2 seconds, like `X-Server-Timeout`, which takes precedence. Other"
                " preferences are ignored.",
                {"type": "string"},
                "wait=2",
            ),
            header(
                metadata.EXPLAIN,
                "`1`: adds headers to the answer or the error, with the store that answered and the reason.",
                {"type": "string"},
                "1",
            ),
            header(
                metadata.CLIENT,
                "Name that the caller gives itself. Operators see it in the list of callers of an old schema version"
                " or of the old service's own listener.",
                {"type": "string", "pattern": "^[ -~]*$"},
            ),
            header(metadata.TRACEPARENT, "W3C trace context.", {"type": "string", "pattern": "^[ -~]*$"}),
            header(
                IDEMPOTENCY_KEY,
                "Request id, a UUID: repeated calls with the same one have one effect and get the same answer. The"
                " field `requestId` means the same; if both are given they must be equal.",
                {"type": "string", "format": "uuid"},
            ),
            header(
                IF_MATCH,
                "ETag of an earlier answer: the write fails with 409 if the record was written since.",
                {"type": "string", "pattern": _ETAG_PATTERN},
            ),
            header(
                IF_NONE_MATCH,
                "ETag of an earlier answer: if it is still current, the response is 304 without a body.",
                {"type": "string"},
            ),
            header(
                LAST_EVENT_ID,
                "Id of the newest event, to continue from there. A browser's EventSource sends it. The field"
                " `resumeToken` means the same.",
                {"type": "string"},
            ),
        )
    }
)

BEARER = "bearer"
"""Name of the security scheme."""

SECURITY_SCHEMES: Schema = {
    BEARER: {
        "type": "http",
        "scheme": "bearer",
        "description": "A token, if the listener's operator requires one.",
    }
}

HEADERS: Mapping[str, Schema] = MappingProxyType(
    {
        "ETag": {
            "description": "ETag of the record's newest write, quotes included, equal to the field `etag`.",
            "schema": {"type": "string", "pattern": _ETAG_PATTERN},
        },
        "Vary": {
            "description": "The request's header that chooses the form of the answer.",
            "schema": {"type": "string"},
        },
        "Cache-Control": {
            "description": "A stored answer must be asked for again before it is used.",
            "schema": {"type": "string", "const": SECURITY["cache-control"]},
        },
        "X-Content-Type-Options": {
            "description": "The content type is as it says.",
            "schema": {"type": "string", "const": SECURITY["x-content-type-options"]},
        },
        "Retry-After": {
            "description": "Seconds after which a retry can help.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "WWW-Authenticate": {
            "description": "How to authenticate (RFC 6750), and why the token was refused.",
            "schema": {"type": "string"},
        },
        "Age": {
            "description": "Maximum age of a stale answer, in seconds.",
            "schema": {"type": "integer", "minimum": 0},
        },
        "Deprecation": {
            "description": "The call uses a deprecated feature (RFC 9745), which `Baton-Deprecated` describes.",
            "schema": {"type": "string"},
        },
        "Baton-Deprecated": {
            "description": "Change that the caller must make, in words.",
            "schema": {"type": "string"},
        },
        "Baton-Stale": {
            "description": "`1`: the answer comes from a copy and may lack the newest writes. `0`, only if the call has"
            f" `{metadata.EXPLAIN}`: it does not.",
            "schema": {"type": "string", "enum": ["0", "1"]},
        },
        "Baton-Age-Seconds": {
            "description": "Age with fractions of a second.",
            "schema": {"type": "number", "minimum": 0},
        },
        "Baton-Version": {
            "description": "`term-revision` of the record, if the answer is stale or repeated, or the call has"
            f" `{metadata.EXPLAIN}`.",
            "schema": {"type": "string"},
        },
        "Baton-Store": {
            "description": f"Store that answered, if the call has `{metadata.EXPLAIN}`.",
            "schema": {"type": "string"},
        },
        "Baton-Reason": {
            "description": f"Rule that chose the store, if a call to the router has `{metadata.EXPLAIN}`.",
            "schema": {"type": "string"},
        },
        "Baton-Phase": {
            "description": f"Phase of the migration, if a call to the router has `{metadata.EXPLAIN}`.",
            "schema": {"type": "string"},
        },
    }
)

_OF_ANSWERS = tuple(name for name in HEADERS if name not in ("ETag", "Vary", "Retry-After"))
_RETRIABLE = (400, 409, 429, 503)

_BY_HTTP_ONLY: Mapping[int, str] = MappingProxyType(
    {
        408: "The head of the request did not come in time.",
        413: "The body is too large.",
        415: "The body is not JSON in UTF-8, or it is compressed.",
        431: "The head of the request is too large.",
    }
)
_MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        400: "The request is not valid, or not possible in the record's current state.",
        401: "The listener's operator requires a token, and the request has none or one that is not valid.",
        404: "The record does not exist.",
        409: "The record already exists, or another write came first, or the record is busy.",
        429: "There are too many calls, or a store is full.",
        500: "The server failed.",
        501: "The server does not support the transfer encoding of the body, or the method.",
        503: "The server, or the store that owns the record, is unavailable, or too many connections are open. A"
        " write may have had its effect: retry it with the same request id.",
        504: "The deadline has passed. A write may have had its effect: retry it with the same request id.",
    }
)

_DETAILS: tuple[Descriptor, ...] = (
    error_details_pb2.ErrorInfo.DESCRIPTOR,
    error_details_pb2.BadRequest.DESCRIPTOR,
    error_details_pb2.PreconditionFailure.DESCRIPTOR,
    error_details_pb2.RetryInfo.DESCRIPTOR,
)


def error_codes(*, keyed: bool, body: bool) -> list[int]:
    """HTTP codes of possible errors. `keyed`: the path names a record."""
    found = {400, 401, 408, 409, 429, 431, 500, 501, 503, 504}
    found |= {404} if keyed else set()
    found |= {413, 415} if body else set()
    return sorted(found)


def error_response(code: int) -> Schema:
    """An error response by AIP-193."""
    statuses = [status.name for status, http in HTTP_CODES.items() if http == code]
    text = _BY_HTTP_ONLY.get(code) or f"{_MEANINGS[code]} Status: {', '.join(statuses)}."
    own = ("Retry-After",) if code in _RETRIABLE else ("WWW-Authenticate",) if code == 401 else ()
    names = (*own, *_OF_ANSWERS)
    return {
        "description": text,
        "headers": header_references(names),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def answer_headers(*, etag: bool, varies: bool) -> Schema:
    """`varies`: by the caller's schema version."""
    return header_references((*(("ETag",) if etag else ()), *(("Vary",) if varies else ()), *_OF_ANSWERS))


def header_references(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def parameter_reference(name: str) -> Schema:
    return {"$ref": f"#/components/parameters/{name}"}


def add_error(schemas: Schemas) -> None:
    """Add the body of every error as the schema Error."""
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
                    "code": {"type": "integer", "description": "HTTP code of the response."},
                    "status": {
                        "type": "string",
                        "description": "Status name, the same over every protocol.",
                        "enum": [status.name for status in grpc.StatusCode if status is not grpc.StatusCode.OK],
                    },
                    "message": {"type": "string", "description": "Field, value and remedy."},
                    "details": {
                        "type": "array",
                        "description": "Every error has an ErrorInfo, whose `reason` is stable for programs.",
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
