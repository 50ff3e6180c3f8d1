"""Number of times that stores have passed a call on, so that a call ends that goes round in a circle.

A call needs one hop: from a store's public listener to a router, which calls internal listeners, and these pass nothing
on. It goes round only if an address names the wrong listener.
"""

from __future__ import annotations

from typing import Any

from libs.errors import BatonError
from libs.rpc import metadata

MOST_HOPS = 1


class CallLoop(BatonError):
    """This call was passed on to another store's listener instead of a router's. It has had no effect. Check the
    settings `router` and `router_internal` of the stores, and `store_a` and `store_b` of the routers."""

    code = "FAILED_PRECONDITION"
    reason = "CALL_LOOP"


def hops_of(found: Any) -> int:
    """Hops of a call so far, from its metadata. A client that sets the number limits its own call only."""
    for name, value in found or ():
        if name == metadata.HOPS and isinstance(value, str) and value.isascii() and value.isdigit():
            return min(int(value[:4]), MOST_HOPS)
    return 0


def passed_on(found: Any) -> tuple[tuple[str, str], ...]:
    """Return the number as metadata for a call made on behalf of this one; empty if this call was not passed on."""
    hops = hops_of(found)
    return ((metadata.HOPS, str(hops)),) if hops else ()


def next_hop(found: Any) -> tuple[str, str]:
    """Metadata of the call when it is passed on. Raises CallLoop."""
    hops = hops_of(found)
    if hops >= MOST_HOPS:
        raise CallLoop()
    return metadata.HOPS, str(hops + 1)
