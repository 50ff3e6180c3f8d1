"""Plausible values of the fields of each listener's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libs.ownership.model import bucket_of
from tests.fuzz.messages import Words

FIRST_BUCKET = 1000
_IDS = [f"fuzz-{number}" for number in range(12)]
_INNER = [name for name in (f"sandboxes/inner-{number}" for number in range(2000)) if bucket_of(name) >= FIRST_BUCKET][
    :12
]
"""Names for orders to the internal listeners, which are obeyed. They share a few buckets that nothing else uses."""

_CLIENT_TEXTS: Mapping[str, Sequence[str]] = {
    "account": ("acme", "other"),
    "annotations.key": ("note", "a/b"),
    "annotations.value": ("text", ""),
    "command": ("sh", "-c"),
    "env.key": ("PATH", "A_B", "_1"),
    "env.value": ("/bin", "s3cret"),
    "etag": ("", "", "", '"0.1"'),
    "filter": ("", "state = PENDING", 'account = "acme"', 'labels.team = "a" AND state = RUNNING', "state =", "a.b"),
    "holder": ("worker-1", "worker-2"),
    "image": ("debian:13", "python:3.12"),
    "labels.key": ("team", "a.b/c"),
    "labels.value": ("search", ""),
    "lease_token": ("", "", "", "0.1", "0.99999999999999999999", "1-1"),
    "page_token": ("", "", "", "", "AAAAAAAAAAAA", "____", "c2FuZGJveGVz"),
    "paths": (
        "labels",
        "spec",
        "spec.env",
        "spec.image",
        "annotations",
        "state",
        "*",
        "name",
        "spec.env.A",
        "labels.a",
    ),
    "resume_token": ("", "", "", "AAAAAAAAAABBMQ", "AAAAAAAAAABCMQ"),
    "token": ("0.1", "0.2"),
}
_CLIENT_NUMBERS: Mapping[str, Sequence[int]] = {
    "cpu_millis": (0, 500),
    "memory_mib": (0, 256),
    "page_size": (0, 1, 10, 500),
    "seconds": (1, 30),
    "nanos": (0, 0, 500_000_000),
    "state": (0, 1, 2, 3, 4),
}

_NEEDED = frozenset({"account", "holder", "image", "name", "sandbox", "spec", "token", "ttl"})


def client_words(unique: str) -> Words:
    """`unique`: an id that no other case uses, so that a record of this id is known to come from this case. Two of
    three creates have it: the shared ids are soon taken."""
    names = [f"sandboxes/{one}" for one in (*_IDS, unique)]
    texts = {**_CLIENT_TEXTS, "sandbox_id": [*_IDS, *[unique] * 2 * len(_IDS)], "name": names}
    return Words(texts, _CLIENT_NUMBERS, _NEEDED)


_LIST = "/sandbox.v1.SandboxService/ListSandboxes"
INTERNAL_WORDS = Words(
    {
        **_CLIENT_TEXTS,
        "after": ("", *_INNER[:3]),
        "key": _INNER,
        "keys": _INNER,
        "method": (_LIST, _LIST, "/x.Y/Z", ""),
        "name": _INNER,
        "principal": ("anonymous", "ann"),
        "sandbox_id": [name.removeprefix("sandboxes/") for name in _INNER],
        "database": ("",),
        "reason": ("",),
    },
    {
        **_CLIENT_NUMBERS,
        "bucket": range(FIRST_BUCKET, 1024),
        "buckets": range(FIRST_BUCKET, 1024),
        "limit": (1, 10, 500),
        "offset": (10**9,),
        "revision": (1, 2, 3),
        "schema_version": (0, 1, 2),
        "term": (0,),
    },
    _NEEDED | {"key", "keys", "buckets", "bucket", "limit", "to"},
    frozenset({"key", "keys", "name", "sandbox_id", "bucket", "buckets", "term", "offset", "database", "reason"}),
)
"""A store obeys its router. So a well-formed order concerns only records and buckets of its own, and never seizes or
fences: a term stays 0, and a fence has no reason."""

CONTROL_WORDS = Words(
    {
        **_CLIENT_TEXTS,
        "actor": ("ann", ""),
        "arguments.key": ("store", "buckets", "phase", "start", "dry_run", "recheck", "repair"),
        "arguments.value": ("A", "B", "true", "1", "start", "0-10", "x"),
        "confirm": ("",),
        "id": ("backfill-1", "audit-1", "reconcile-1", "validate-1", "x-99"),
        "json": ("{}", '{"name": "sandboxes/fuzz-1"}', "[", "[" * 2000),
        "key": ("sandboxes/fuzz-1", "sandboxes/none"),
        "kind": ("audit", "backfill", "reconcile", "validate", "replay", "seize", "recover", "canary-auto", "x"),
        "name": ("sandboxes/fuzz-1", "baton.use_new", "baton.use_new.get"),
        "operation": ("get", "list", "create", "update", "delete", "x"),
        "plan": ("", "steps = [1, 5, 100]", "[[step]]\npermille = 10\n", "x = [" * 500),
        "reason": ("because", ""),
        "set.key": ("gate_error_calls", "gate_lag_seconds", "automatic_rollback_calls"),
        "start": ("start", "", "0/0", "3/1200,5/80", "2026-01-01T00:00:00Z", "3/", "99999/1"),
        "unset": ("gate_error_calls", "x"),
    },
    {
        "action": (0, 1, 2, 3, 4),
        "buckets": (1, 2, 64),
        "generation": (0, 0, 0, 1, 5),
        "limit": (0, 1, 50),
        "offset": (0, 1, 10**9),
        "partition": (0, 1, 15),
        "permille": (0, 10, 1000),
        "store": (0, 1, 2),
        "to": (0, 1, 2, 3, 4, 5, 6),
    },
    frozenset({"actor", "reason", "to", "kind", "name", "operation", "key", "store"}),
    frozenset({"confirm"}),
)
"""No case types the name that confirms a seizure, a recovery or the last phase."""
