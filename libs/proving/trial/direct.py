"""Clients that call the stores directly: with routes that are right, old or wrong."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from libs.ownership.model import bucket_of
from libs.proving.trial.doors import CONTRACT, Way
from libs.rpc import metadata
from libs.sandboxes.schema import METADATA, SCHEMAS

_METHODS = {method.path: method for method in CONTRACT.methods.values()}
_NEWEST = (METADATA, str(SCHEMAS.newest))
"""Lists are no direct calls, so the old service answers them in the old schema unless they ask for the newest."""


def bucket_pair(method: str, data: bytes) -> tuple[tuple[str, str], ...]:
    """The metadata that marks a direct call; none for a call that names no record."""
    rule = _METHODS[method]
    if rule.key is None or rule.shape is not None:
        return ()
    message = rule.parse(data)
    return () if rule.key.lacks_id(message) else ((metadata.BUCKET, str(bucket_of(rule.key.of(message)))),)


class RandomStore:
    """A client whose routes are out of date: each call goes to a random process of a random store."""

    def __init__(self, ways: Sequence[Way], seed: int) -> None:
        self._ways = ways
        self._random = random.Random(seed)

    def multi_callable(self, method: str) -> Any:
        called = self._random.choice(self._ways).multi_callable(method)

        def call(data: bytes, timeout: float | None = None, metadata: Iterable[tuple[str, Any]] | None = None) -> Any:
            sent = grpc.aio.Metadata(*(metadata or ()), _NEWEST, *bucket_pair(method, data))
            return called(data, timeout=timeout, metadata=sent)

        return call


class Routed:
    """A client with xDS: its channel chooses the process by the bucket."""

    def __init__(self, way: Way) -> None:
        self._way = way

    def multi_callable(self, method: str) -> Any:
        called = self._way.multi_callable(method)

        def call(data: bytes, timeout: float | None = None, metadata: Iterable[tuple[str, Any]] | None = None) -> Any:
            sent = grpc.aio.Metadata(*(metadata or ()), *bucket_pair(method, data))
            return called(data, timeout=timeout, metadata=sent)

        return call
