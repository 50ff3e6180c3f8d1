"""Authentication at a listener's gate, and the principal that calls see."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from libs.errors import BatonError
from libs.identity.errors import CertificateRevoked, KeysUnavailable, TokenMissing, TokenUnknown
from libs.identity.none import NoAuthentication
from libs.identity.opening import Identity, with_own_calls
from libs.identity.port import AUTHORIZATION, Authenticator, Credentials
from libs.identity.principal import ANONYMOUS, Principal, Role, current_principal, subject_of
from libs.ownership.limits import MAX_PRINCIPAL_BYTES
from libs.pb.baton.identity.v1 import identity_pb2
from libs.rpc import metadata, proof
from libs.rpc.caller import make_id, read_caller
from libs.rpc.channel import Channel, RawCallable
from libs.rpc.errors import Context, reason_of
from libs.rpc.forwarded import ForwardedPrincipal, pair_of, principal_of
from libs.rpc.gate import ServerLimits
from libs.rpc.server import CannotListen, RawService, Server, ServerConfig
from tests.unit.test_rpc_server import Held, refusal, serving
from tests.waiting import eventually

SERVICE = "test.Service"


class Named:
    """Takes the token as the subject."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        token = dict(credentials.invocation_metadata() or ()).get(AUTHORIZATION, "")
        await asyncio.sleep(0)
        if not token:
            raise TokenMissing()
        return Principal(subject_of("test", token.removeprefix("Bearer ")))


class Refusing:
    async def authenticate(self, credentials: Credentials) -> Principal:
        raise TokenUnknown()


class Broken:
    async def authenticate(self, credentials: Credentials) -> Principal:
        raise RuntimeError("a defect with a secret")


def config(authenticator: Authenticator | None, limits: ServerLimits | None = None) -> ServerConfig:
    return ServerConfig(
        "127.0.0.1:0", "public", limits or ServerLimits(), authenticator=authenticator, auth_setting="public_auth"
    )


async def name(request: bytes, context: Context) -> bytes:
    started = asyncio.ensure_future(_subject())
    return f"{read_caller((), internal=False).subject} {await started}".encode()


async def _subject() -> str:
    return current_principal().subject


async def names(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
    yield (await _subject()).encode()


def service(held: Held | None = None) -> RawService:
    return RawService(SERVICE, {"Name": name, "Hold": held or name, "Who": who}, {"Names": names})


def bearer(token: str) -> grpc.aio.Metadata:
    return grpc.aio.Metadata((AUTHORIZATION, f"Bearer {token}"))


async def test_a_call_and_a_stream_have_their_callers_principal_and_so_have_tasks_that_they_start() -> None:
    async with serving(config(Named()), service()) as (_, channel):
        call, stream = channel.multi_callable(f"/{SERVICE}/Name"), channel.stream_callable(f"/{SERVICE}/Names")
        answers = await asyncio.gather(*(call(b"", metadata=bearer(one)) for one in ("ann", "ben") * 5))
        assert answers == [b"test:ann test:ann", b"test:ben test:ben"] * 5
        assert [one async for one in stream(b"", metadata=bearer("ann"))] == [b"test:ann"]


async def test_without_an_authenticator_the_caller_is_anonymous_and_may_do_everything() -> None:
    async with serving(config(None), service()) as (_, channel):
        answer = await channel.multi_callable(f"/{SERVICE}/Name")(b"", metadata=bearer("ann"))
    assert answer == b"anonymous anonymous"
    assert ANONYMOUS.has(Role.ADMIN)


async def test_a_caller_without_a_principal_is_refused_with_a_reason_and_takes_no_slot() -> None:
    held = Held()
    limits = ServerLimits(calls=1, streams=1)
    async with serving(config(Named(), limits), service(held)) as (server, channel):
        first = channel.multi_callable(f"/{SERVICE}/Hold")(b"", metadata=bearer("ann"))
        await eventually(lambda: server.in_flight == 1)
        await _refused(channel, server, "UNAUTHENTICATED", "TOKEN_MISSING")
        held.go_on.set()
        assert await first == b"done"
        assert held.entered == 1


async def _refused(channel: Channel, server: Server, code: str, reason: str) -> None:
    found = await refusal(channel.multi_callable(f"/{SERVICE}/Hold")(b""))
    assert (found.code().name, reason_of(found)[0]) == (code, reason)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in channel.stream_callable(f"/{SERVICE}/Names")(b""):
            pass
    assert (caught.value.code().name, reason_of(caught.value)[0]) == (code, reason)


async def test_a_defect_of_the_authenticator_serves_no_call_and_shows_nothing() -> None:
    async with serving(config(Broken()), service()) as (server, channel):
        await _refused(channel, server, "INTERNAL", "INTERNAL")
        found = await refusal(channel.multi_callable(f"/{SERVICE}/Name")(b""))
        assert "secret" not in str(found)


async def test_reflection_needs_a_principal_and_health_does_not() -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving(config(Named()), service()) as (_, channel):
        channel_of: Any = channel.grpc
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel_of)
        health: Any = health_pb2_grpc.HealthStub(channel_of)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ServerReflectionInfo(iter([asked])).read()
        assert reason_of(caught.value)[0] == "TOKEN_MISSING"
        answer = await stub.ServerReflectionInfo(iter([asked]), metadata=bearer("ann")).read()
        assert SERVICE in [one.name for one in answer.list_services_response.service]
        checked = await health.Check(health_pb2.HealthCheckRequest())
        assert checked.status == health_pb2.HealthCheckResponse.SERVING


async def test_beyond_loopback_the_absence_of_authentication_must_be_written_down() -> None:
    away = replace(config(None), address="0.0.0.0:0")
    with pytest.raises(CannotListen, match=r"public: 0\.0\.0\.0:0 can be reached .* set public_auth to jwt"):
        await Server(away, [service()]).start()
    server = Server(replace(away, authenticator=NoAuthentication()), [service()])
    await server.start()
    server.check_exposure("http", "0.0.0.0:0")
    await server.drain(0.0)
    on_loopback = Server(config(None), [service()])
    with pytest.raises(CannotListen, match=r"http: 0\.0\.0\.0:0 can be reached"):
        on_loopback.check_exposure("http", "0.0.0.0:0")


@asynccontextmanager
async def internal() -> AsyncIterator[RawCallable]:
    at = ServerConfig("127.0.0.1:0", "internal", authenticator=ForwardedPrincipal())
    async with serving(at, service()) as (_, channel):
        yield channel.multi_callable(f"/{SERVICE}/Who")


async def who(request: bytes, context: Context) -> bytes:
    return repr(current_principal()).encode()


async def test_an_internal_listener_takes_the_principal_from_a_router_of_this_and_of_the_last_release() -> None:
    ann = Principal("issuer:ann", frozenset({"acme", "größe"}), frozenset({Role.VIEWER, Role.OPERATOR}))
    earlier = Principal("issuer:ann", roles=frozenset({Role.ADMIN}))
    async with internal() as call:
        for pairs, expected in (
            ((pair_of(ann),), ann),
            (((metadata.PRINCIPAL, "issuer:ann"), pair_of(ann)), ann),
            (((metadata.PRINCIPAL, "issuer:ann"),), earlier),
            (((metadata.PRINCIPAL, "anonymous"),), ANONYMOUS),
            ((), ANONYMOUS),
        ):
            assert await call(b"", metadata=grpc.aio.Metadata(*pairs)) == repr(expected).encode()


@pytest.mark.parametrize(
    "pair",
    [
        (metadata.PRINCIPAL_BIN, b"\xff"),
        (metadata.PRINCIPAL_BIN, b""),
        (metadata.PRINCIPAL_BIN, pair_of(Principal("p" * (MAX_PRINCIPAL_BYTES + 1)))[1]),
        (metadata.PRINCIPAL, "p" * (MAX_PRINCIPAL_BYTES + 1)),
    ],
)
async def test_an_internal_listener_refuses_a_principal_that_is_not_valid(pair: tuple[str, str | bytes]) -> None:
    async with internal() as call:
        refused = await refusal(call(b"", metadata=grpc.aio.Metadata(pair)))
    assert reason_of(refused)[0] == "INVALID_FIELD"


async def test_a_process_calls_its_own_listener_and_others_do_not_by_its_token() -> None:
    identity = with_own_calls(Identity(Named()))
    async with serving(config(identity.authenticator), service()) as (_, channel):
        call = channel.multi_callable(f"/{SERVICE}/Name")
        assert await call(b"", metadata=bearer("ann")) == b"test:ann test:ann"
        assert reason_of(await refusal(call(b"")))[0] == "TOKEN_MISSING"
    strict = with_own_calls(Identity(Refusing()))
    async with serving(config(strict.authenticator), service()) as (_, channel):
        call = channel.multi_callable(f"/{SERVICE}/Name")
        assert await call(b"", metadata=grpc.aio.Metadata(*strict.own_metadata)) == b"baton:router baton:router"
        for pairs in (identity.own_metadata, (), ((AUTHORIZATION, "Bearer "),)):
            assert reason_of(await refusal(call(b"", metadata=grpc.aio.Metadata(*pairs))))[0] == "TOKEN_UNKNOWN"


def test_a_role_of_a_newer_release_grants_nothing() -> None:
    message = identity_pb2.Principal(subject="x:y", roles=[9])  # type: ignore[list-item]  # an unknown value
    assert principal_of(message.SerializeToString()) == Principal("x:y")


def test_a_role_includes_the_lower_ones() -> None:
    operator = Principal("x:y", roles=frozenset({Role.OPERATOR}))
    assert [operator.has(role) for role in Role] == [True, True, False]
    assert not any(Principal("x:y").has(role) for role in Role)


@pytest.mark.parametrize("subject", ["s" * MAX_PRINCIPAL_BYTES, "é" * 64, "a\0b", "line\nbreak", "\ud800"])
def test_a_subject_that_is_long_or_not_printable_is_hashed(subject: str) -> None:
    made = subject_of("issuer", subject)
    assert made.startswith("sha256:") and len(made) == 71
    assert made != subject_of("issuer", subject + "x")


def test_a_short_subject_keeps_its_issuer_and_never_is_anonymous() -> None:
    assert subject_of("https://idp.test", "ann") == "https://idp.test:ann"
    assert subject_of("", "anonymous") == ":anonymous"


def test_a_made_id_is_what_it_was_before_callers_had_an_identity() -> None:
    assert make_id("5F1D8E0A-1B7A-4C55-9E43-0D6B2C3A4F10") == "b0b7b281-f4e5-562b-a049-26e676b62175"


class Expiring:
    """A principal whose proof ends after so many seconds of the test's time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def authenticate(self, credentials: Credentials) -> Principal:
        return Principal("test:ann", expires_at=time.time() + self.seconds)


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_stream_ends_with_the_proof_of_its_callers_identity(answers: int) -> None:
    async def endless(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        for _ in range(answers):
            yield b"one"
        await asyncio.Event().wait()

    streams = RawService(SERVICE, {}, {"Names": endless})
    async with serving(config(Expiring(0.2)), streams) as (server, channel):
        call = channel.stream_callable(f"/{SERVICE}/Names")(b"")
        async with asyncio.timeout(10):
            refused = await refusal(_all(call, answers))
        assert reason_of(refused)[0] == "TOKEN_EXPIRED"
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        await eventually(lambda: not server.gate.streams)


async def test_a_stream_that_is_always_being_written_to_ends_too() -> None:
    async def busy(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x" * 100_000

    async with serving(config(Expiring(0.2)), RawService(SERVICE, {}, {"Names": busy})) as (_, channel):
        call = channel.stream_callable(f"/{SERVICE}/Names")(b"")
        async with asyncio.timeout(20):
            refused = await refusal(_all(call, -1))
    assert reason_of(refused)[0] == "TOKEN_EXPIRED"


ANN = Principal("test:ann", frozenset({"acme"}))


class Changing:
    """An authenticator whose answer changes."""

    def __init__(self) -> None:
        self.answer: Principal | BatonError = ANN
        self.looks = 0

    async def authenticate(self, credentials: Credentials) -> Principal:
        self.looks += 1
        if isinstance(self.answer, BatonError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (TokenUnknown(), "TOKEN_UNKNOWN"),
        (CertificateRevoked(), "CERTIFICATE_REVOKED"),
        (replace(ANN, accounts=frozenset()), "IDENTITY_CHANGED"),
        (replace(ANN, roles=frozenset({Role.OPERATOR})), "IDENTITY_CHANGED"),
    ],
)
async def test_a_stream_ends_when_its_caller_is_somebody_else_or_no_one(
    monkeypatch: pytest.MonkeyPatch, change: Principal | BatonError, reason: str
) -> None:
    """Also a caller who is the same for now, or cannot be asked: that stream goes on until then."""
    changing = Changing()

    async def endless(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        yield b"one"
        await asyncio.Event().wait()

    monkeypatch.setattr(proof, "LOOK_SECONDS", 0.05)
    async with serving(config(changing), RawService(SERVICE, {}, {"Names": endless})) as (server, channel):
        call = channel.stream_callable(f"/{SERVICE}/Names")(b"")
        assert await call.read() == b"one"
        for same in (replace(ANN, expires_at=time.time() + 3600.0), KeysUnavailable()):
            wanted, changing.answer = changing.looks + 2, same
            await eventually(lambda wanted=wanted: changing.looks >= wanted)  # type: ignore[misc]
            assert server.gate.streams == 1
        changing.answer = change
        async with asyncio.timeout(10):
            assert reason_of(await refusal(_all(call, 0)))[0] == reason
        await eventually(lambda: not server.gate.streams)


async def _all(call: Any, count: int) -> None:
    """Read so many answers (-1: all), then wait for the end."""
    while count:
        await call.read()
        count -= 1
    await call.read()
