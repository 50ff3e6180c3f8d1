"""Interceptors for channels with stubs of your own. `connect` needs none of them.

grpc.intercept_channel(channel, BucketInterceptor())
grpc.aio.insecure_channel(target, interceptors=[AsyncBucketInterceptor()])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from baton_client.bucket import bucket_metadata
from baton_client.methods import KEYS


def _with_bucket(details: Any, request: Any) -> Any:
    path = details.method.decode() if isinstance(details.method, bytes) else details.method
    added = bucket_metadata(KEYS.get(path, ""), request)
    if not added:
        return details
    return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), *added))


class BucketInterceptor(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc,unused-ignore]
    """Adds the bucket to the calls of a blocking channel."""

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        return continuation(_with_bucket(client_call_details, request), request)


class AsyncBucketInterceptor(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc,unused-ignore]
    """Adds the bucket to the calls of a channel for asyncio."""

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_with_bucket(client_call_details, request), request)
