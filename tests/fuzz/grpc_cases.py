"""Cases for the gRPC listeners: each method of each service, health, reflection, and methods that do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from libs.pb.baton.control.v1 import control_pb2
from libs.pb.baton.replication.v1 import audit_pb2, recovery_pb2, repair_pb2, replication_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2
from libs.rpc import reflection
from tests.fuzz.case import GRPC, Case
from tests.fuzz.messages import Maker, Words
from tests.fuzz.words import CONTROL_WORDS, FIRST_BUCKET, INTERNAL_WORDS, client_words

_SERVICE = sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection.NAMES[0]

_INTERNAL_SERVICES = (
    _SERVICE,
    replication_pb2.DESCRIPTOR.services_by_name["ReplicationService"],
    recovery_pb2.DESCRIPTOR.services_by_name["RecoveryService"],
    repair_pb2.DESCRIPTOR.services_by_name["RepairService"],
    audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
)
_CONTROL = control_pb2.DESCRIPTOR.services_by_name["ControlService"]
_RESERVED = {"FenceStore": "reason", "TakeOrder": "order", "SeizeBuckets": "ends", "NoteOther": "other",
             "OpenStore": "order"}  # fmt: skip
"""Fields of orders that only a recovery may give: cases leave them out."""


def grpc_case(random: Random, listener: str, kind: str, unique: str) -> Case:
    words = {"public": client_words(unique), "internal": INTERNAL_WORDS, "control": CONTROL_WORDS}[kind]
    maker = Maker(random, words)
    if random.random() < 0.04:
        return _stray(random, maker, listener)
    methods = _methods(kind)
    method = random.choice(methods)
    kind_of_request: Any = method.input_type
    data = _tamed(method, maker.data(kind_of_request), words, random)
    path = f"/{method.containing_service.full_name}/{method.name}"
    seconds = random.choice((0.001, 0.02)) if random.random() < 0.02 else 0.0
    return Case(listener, GRPC, path, data, _metadata(random, internal=kind == "internal"), seconds)


def _methods(kind: str) -> Sequence[MethodDescriptor]:
    services = {"public": (_SERVICE,), "internal": _INTERNAL_SERVICES, "control": (_CONTROL,)}[kind]
    return [method for service in services for method in service.methods]


def _stray(random: Random, maker: Maker, listener: str) -> Case:
    """Calls of the services beside the listener's own, and of methods that do not exist."""
    method: Any = random.choice(list(_HEALTH.methods))
    asked = descriptor_pool.Default().FindMessageTypeByName("grpc.reflection.v1.ServerReflectionRequest")
    found = random.choice(
        (
            (f"/{_HEALTH.full_name}/{method.name}", maker.data(method.input_type)),
            (f"/{_REFLECTION}/ServerReflectionInfo", maker.data(asked)),
            (f"/{_SERVICE.full_name}/NoSuchMethod", b""),
            ("/x/y", random.randbytes(10)),
            ("/", b""),
        )
    )
    return Case(listener, GRPC, *found)


def _metadata(random: Random, *, internal: bool) -> tuple[tuple[str, str], ...]:
    if random.random() < 0.6:
        return ()
    odd = (
        ("sandbox-schema-version", random.choice(("1", "1", "1", "2", "2", "2", "0", "99", "-1", "x", "", "9" * 30))),
        ("traceparent", random.choice(("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x" * 300, ""))),
        ("baton-explain", random.choice(("1", "yes"))),
        ("baton-client", random.choice(("me", "x" * 500, "a,b;c", " "))),
        ("baton-principal", random.choice(("", "ann", "x" * 129))),
        ("baton-made-id", random.choice(("", "made", "x" * 64, "Not Valid"))),
        ("baton-request-id", random.choice(("", "1", "00000000-0000-0000-0000-000000000001"))),
        ("baton-replica", "1"),
        ("baton-token" if random.random() < 0.1 else "baton-tokens", "wrong" * 5),
        ("x-odd-bin", random.randbytes(20).decode("latin-1")),
        ("x-long", "y" * random.choice((100, 3000))),
    )
    return tuple(random.sample(odd, random.choice((1, 2, 4))))


def _tamed(method: MethodDescriptor, data: bytes, words: Words, random: Random) -> bytes:
    """The request without values that a trusted caller must not send at random."""
    if method.name == "RestartFeed":
        # Any request of this method skips the rest of the log.
        return b"\xff"
    if not words.only:
        return data
    try:
        request = GetMessageClass(method.input_type).FromString(data)
    except DecodeError:
        return data
    changed = _tame(request, words, random)
    reserved = _RESERVED.get(method.name)
    if reserved and any(one.name == reserved for one, _ in request.ListFields()):
        request.ClearField(reserved)
        changed = True
    return request.SerializeToString() if changed else data


def _tame(message: Message, words: Words, random: Random) -> bool:
    changed = False
    for one, value in message.ListFields():
        if one.message_type is not None:
            if one.message_type.GetOptions().map_entry:
                continue
            for inner in value if one.is_repeated else (value,):
                changed |= _tame(inner, words, random)
            continue
        if one.name not in words.only:
            continue
        allowed = words.texts.get(one.name) or words.numbers.get(one.name) or ()
        if one.is_repeated:
            kept = [item for item in value if item in allowed or not _dangerous(one.name, item)]
            if len(kept) < len(value):
                del value[:]
                value.extend(kept)
                changed = True
        elif value not in allowed and _dangerous(one.name, value):
            setattr(message, one.name, random.choice(allowed))
            changed = True
    return changed


def _dangerous(name: str, value: Any) -> bool:
    """Whether the value names a record or a bucket that other cases use, or is an order."""
    if name in ("bucket", "buckets"):
        return bool(0 <= value < FIRST_BUCKET)
    return True
