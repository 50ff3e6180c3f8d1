"""Cases by seed, listener and number."""

from __future__ import annotations

from random import Random

from tests.fuzz.case import Case
from tests.fuzz.grpc_cases import grpc_case
from tests.fuzz.http_cases import http_case

LISTENERS = (
    "public a", "public b", "public router", "internal a", "internal b", "control router", "http a", "http b",
    "http router",
)  # fmt: skip


def make_case(seed: int, listener: str, number: int) -> Case:
    """The case of this number: the same for the same arguments."""
    random = Random(f"{seed} {listener} {number}")
    kind = listener.partition(" ")[0]
    unique = f"u{seed}-{listener.replace(' ', '')}-{number}"[:63]
    if kind == "http":
        return http_case(random, listener, unique)
    return grpc_case(random, listener, kind, unique)
