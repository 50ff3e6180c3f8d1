"""Reliable shutdown of aiokafka's clients, and waits that they lack. Only this module and `kafka_records` use private
parts of aiokafka (0.14)."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from libs.tls.files import TlsUnfit

log = logging.getLogger(__name__)

_BREAK_OFF_SECONDS = 2.0
_CANCEL_AGAIN_SECONDS = 0.05
_WHY_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.1

_CLOSED = "the broker closed the connection: does its listener use this event_log_security?"
_REMEDIES: Mapping[type[Exception], str] = {
    SaslAuthenticationFailed: "the broker refuses the user: check event_log_user, event_log_password_file and"
    " event_log_sasl_mechanism",
    UnsupportedSaslMechanismError: "the broker does not allow this event_log_sasl_mechanism",
    KafkaConnectionError: _CLOSED,
    ConnectionResetError: _CLOSED,
}


async def stop_within(client: Any, seconds: float) -> None:
    """Stop a producer, consumer or admin client. If that fails, takes longer or is cancelled, break it off.

    The stop runs in a task: a consumer that is stopped while it waits to repeat a fetch raises CancelledError, which
    would look like a cancellation of the caller, and leaves its connections open.
    """
    stop = asyncio.create_task(client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
    try:
        await asyncio.wait({stop}, timeout=seconds)
    finally:
        if not stop.done():
            stop.cancel()
            log.warning("%s has not stopped within %g s, breaking it off", type(client).__name__, seconds)
            await _break_off(client)
        elif stop.cancelled() or stop.exception() is not None:
            await _break_off(client)


async def wait_for_controller(admin: Any) -> None:
    """Wait until the brokers name a controller among them, as they do not for a moment after a pause. Only then can an
    admin client create and delete topics: otherwise aiokafka raises AttributeError. The caller bounds the time."""
    while True:
        found = await admin.describe_cluster()
        if any(broker["node_id"] == found["controller_id"] for broker in found["brokers"]):
            return
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def watch_metadata(consumer: Any, changed: Callable[[object], None]) -> None:
    """Call `changed` whenever the consumer has new metadata, which it requests after every error of a partition."""
    consumer._client.cluster.add_listener(changed)


async def why_away(options: Mapping[str, Any]) -> str:
    """Why no broker of the addresses lets a client in, in one line without secrets; "" if one does.

    aiokafka's clients only report that they reached none.
    """
    found = ""
    options = dict(options)
    for address in options.pop("bootstrap_servers").split(","):
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(_WHY_SECONDS):
                connection = await create_conn(host.strip("[]"), int(port), **options)
        except (KafkaError, OSError, TimeoutError, TlsUnfit) as error:
            found = _REMEDIES.get(type(error), "") or f"{type(error).__name__}: {error}"
        else:
            connection.close()
            return ""
    return found


async def _break_off(client: Any) -> None:
    """Close the connections. For a producer, also end the sender and fail unsent messages."""
    connections = client.client if hasattr(client, "client") else client._client
    sender = getattr(client, "_sender", None)
    try:
        async with asyncio.timeout(_BREAK_OFF_SECONDS):
            await _close(connections)
            # After one cancellation, the sender still waits for its request, and that for metadata that is no longer
            # fetched.
            while sender is not None and sender.sender_task is not None and not sender.sender_task.done():
                sender.sender_task.cancel()
                await asyncio.wait({sender.sender_task}, timeout=_CANCEL_AGAIN_SECONDS)
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("%s could not be broken off: %r", type(client).__name__, error)
    finally:
        if sender is not None:
            client._message_accumulator.fail_all(KafkaError("the producer was given up"))


async def _close(connections: Any) -> None:
    """Close them in a task: if a stop was cancelled while it closed them, a second close raises CancelledError, which
    would look like a cancellation of the caller."""
    closing = asyncio.create_task(connections.close())
    try:
        await asyncio.wait({closing})
    finally:
        closing.cancel()
    if not closing.cancelled() and (error := closing.exception()) is not None:
        raise error
