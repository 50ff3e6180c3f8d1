"""Seals of documents: a digest, and an authentication code under a key of the ring that signs events.

The digest is the SHA-256 of the document. The code is the HMAC-SHA-256 of `"baton certificate 1" 0x00 DIGEST` under
the key that signs. Both are in 64 lower-case hexadecimal digits. Without a ring there is no code: the digest finds an
accident, but not a change on purpose.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import NamedTuple

from libs.eventlog.key_ring import KeyRing

_CONTEXT = b"baton certificate 1\0"


class Seal(NamedTuple):
    digest: str
    key: str = ""
    """Id of the key; empty: there is no code."""
    code: str = ""


def seal(document: bytes, ring: KeyRing | None) -> Seal:
    digest = sha256(document).hexdigest()
    return Seal(digest) if ring is None else Seal(digest, ring.sign, _code(ring.keys[ring.sign], digest))


def why_no_seal(found: Seal, document: bytes) -> str:
    """Why the digest is not the document's; "" if it is."""
    digest = sha256(document).hexdigest()
    return "" if hmac.compare_digest(digest, found.digest) else f"its digest is {digest}, and it names {found.digest}"


def why_no_code(found: Seal, ring: KeyRing | None) -> str:
    """Why the code is not right; "" if it is."""
    if not found.code:
        return "it is not signed"
    key = None if ring is None else ring.keys.get(found.key)
    if key is None:
        return f"it is signed with key {found.key[:32]!r}, which is not in the ring"
    right = hmac.compare_digest(_code(key, found.digest), found.code)
    return "" if right else f"its code is not the one of its digest under key {found.key}"


def _code(key: bytes, digest: str) -> str:
    return hmac.new(key, _CONTEXT + digest.encode(), sha256).hexdigest()
