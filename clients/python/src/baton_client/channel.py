"""The channel to the service: a server that is gone or stands still is noticed within a few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Options = Sequence[tuple[str, Any]]

_MESSAGE_BYTES = 16 * 1024 * 1024
_METADATA_BYTES = 16 * 1024

OPTIONS: Options = (
    # This package retries, with the same request_id.
    ("grpc.enable_retries", 0),
    # Pings while a call is under way. Without them a call to a server that stands still waits for its whole deadline,
    # and a watch waits forever. An idle client sends none.
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # Newer versions of gRPC wait for a ping's answer by this option: a minute by default.
    ("grpc.http2.ping_timeout_ms", 2000),
    # Short: calls wait for a server that restarts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A page of a list, or one answer of a watch, may exceed the 4 MiB that gRPC takes by default.
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    # Both limits alike: between the two, gRPC refuses answers at random.
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
    # Each address that the target's name resolves to takes its share of the calls.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)


def merged(options: Options) -> Options:
    """The options above, and the caller's in their place where they have the same name."""
    return tuple({**dict(OPTIONS), **dict(options)}.items())
