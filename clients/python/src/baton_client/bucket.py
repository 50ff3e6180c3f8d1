"""The metadata by which a call finds its record's store without a router in between. Pure."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

BUCKET = "baton-bucket"
BUCKETS = 1024

_FIELD = re.compile(r"\{([a-z0-9_.]+)\}")


def bucket_of(name: str) -> int:
    """The bucket of a record's name ("sandboxes/one"), 0 to 1023."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") % BUCKETS


def bucket_metadata(key: str, request: Any) -> tuple[tuple[str, str], ...]:
    """Metadata with the bucket of the request's record; none if it names no record, as a list or a create without an
    id. `key`: form of the record's name, with the request's fields: "sandboxes/{sandbox_id}"."""
    if not key:
        return ()
    values = []
    for path in _FIELD.findall(key):
        value = request
        for field in path.split("."):
            value = getattr(value, field)
        if not value:
            return ()
        values.append(value)
    return ((BUCKET, str(bucket_of(_FIELD.sub("{}", key).format(*values)))),)
