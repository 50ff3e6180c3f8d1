"""Channel options: a dead or stalled server is noticed within a few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Options = Sequence[tuple[str, Any]]

_MESSAGE_BYTES = 16 * 1024 * 1024
_METADATA_BYTES = 16 * 1024

OPTIONS: Options = (
    # This package retries, with the same request_id.
    ("grpc.enable_retries", 0),
    # Ping during calls. Otherwise a call to a stalled server waits for its whole deadline, and a watch waits forever.
    # An idle client sends no pings.
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # Newer versions of gRPC use this option for the ping timeout, which is a minute by default.
    ("grpc.http2.ping_timeout_ms", 2000),
    # Short: calls wait for a server that restarts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A page of a list, or one answer of a watch, may exceed gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    # Both limits are equal: between the two, gRPC refuses answers at random.
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
    # Calls are distributed over all addresses that the target's name resolves to.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)


def merged(options: Options) -> Options:
    """OPTIONS, overridden by the caller's options of the same name."""
    return tuple({**dict(OPTIONS), **dict(options)}.items())
