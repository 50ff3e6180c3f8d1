"""Tokens of an issuer: refusals, memory, and changes of the keys."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from libs.clock import ManualClock
from libs.identity import jwks as jwks_module
from libs.identity import jwt as jwt_module
from libs.identity.errors import KeysUnavailable, Unauthenticated
from libs.identity.jwks import KeysUnfit, KeyTimes, read_address, read_file, read_keys
from libs.identity.jwt import JwtAuthenticator, JwtRules
from libs.identity.port import AUTHORIZATION
from libs.identity.principal import Role
from libs.rpc.forwarded import pair_of
from tests.contracts.identity_adapters import (
    AUDIENCE,
    EC,
    ED,
    ISSUER,
    KEYS,
    RSA,
    PrivateKey,
    Shown,
    bearer,
    claims,
    jwks,
    write,
)

RULES = JwtRules(ISSUER, AUDIENCE, frozenset({"RS256", "ES256", "EdDSA"}))
NEW = PrivateKey("ec-new", "ES256", ec.generate_private_key(ec.SECP256R1()))


class Issuer:
    """A key set that changes, and may be out of reach."""

    def __init__(self, *keys: PrivateKey) -> None:
        self.document = jwks(*keys)
        self.away = False
        self.reads = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def read(self) -> bytes:
        self.reads += 1
        await self.go_on.wait()
        if self.away:
            raise KeysUnfit("away")
        return self.document.encode()


class At:
    def __init__(self, *keys: PrivateKey, rules: JwtRules = RULES) -> None:
        self.clock = ManualClock(time.time())
        self.issuer = Issuer(*(keys or KEYS))
        self.one = JwtAuthenticator(rules, self.issuer.read, KeyTimes(300, 3600), self.clock)

    async def subject(self, token: str) -> str:
        return (await self.one.authenticate(bearer(token))).subject

    async def reason(self, token: str) -> str:
        with pytest.raises(Unauthenticated) as refused:
            await self.one.authenticate(bearer(token))
        assert str(refused.value) == type(refused.value).__doc__
        return refused.value.reason


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tokens that were verified, in order."""
    found: list[str] = []
    decode = jwt.decode

    def counting(token: str, *args: Any, **more: Any) -> Any:
        found.append(token)
        return decode(token, *args, **more)

    monkeypatch.setattr(jwt, "decode", counting)
    return found


def unsigned(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def confused() -> str:
    """Signed with the public key as a shared secret."""
    public = RSA.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = unsigned({"alg": "HS256", "kid": RSA.key_id}, claims()).rpartition(".")[0]
    return (
        head + "." + base64.urlsafe_b64encode(hmac.digest(public, head.encode(), hashlib.sha256)).decode().rstrip("=")
    )


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.algorithm)
async def test_a_token_of_each_algorithm_is_accepted(key: PrivateKey) -> None:
    assert await At().subject(key.sign(claims())) == f"{ISSUER}:ann"


@pytest.mark.parametrize(
    ("reason", "token"),
    [
        ("TOKEN_ALGORITHM", lambda: unsigned({"alg": "none", "kid": RSA.key_id}, claims())),
        ("TOKEN_ALGORITHM", lambda: unsigned({"alg": "None", "kid": RSA.key_id}, claims())),
        ("TOKEN_ALGORITHM", confused),
        ("TOKEN_ALGORITHM", lambda: EC.sign(claims(), kid=RSA.key_id)),
        ("TOKEN_ALGORITHM", lambda: unsigned({"alg": ["RS256"], "kid": RSA.key_id}, claims())),
        ("TOKEN_BAD_SIGNATURE", lambda: PrivateKey(EC.key_id, "ES256", NEW.private).sign(claims())),
        ("TOKEN_BAD_SIGNATURE", lambda: EC.sign(claims())[:-8] + "AAAAAAAA"),
        ("TOKEN_UNKNOWN_KEY", lambda: NEW.sign(claims())),
        ("TOKEN_UNKNOWN_KEY", lambda: jwt.encode(claims(), RSA.private, "RS256")),
        ("TOKEN_WRONG_AUDIENCE", lambda: RSA.sign(claims(aud="others"))),
        ("TOKEN_WRONG_ISSUER", lambda: RSA.sign(claims(iss="https://idp.example/"))),
        ("TOKEN_EXPIRED", lambda: RSA.sign(claims(exp=int(time.time()) - 1))),
        ("TOKEN_NOT_YET_VALID", lambda: RSA.sign(claims(nbf=int(time.time()) + 60))),
        ("TOKEN_CLAIM_MISSING", lambda: RSA.sign(claims(exp=None))),
        ("TOKEN_CLAIM_MISSING", lambda: RSA.sign(claims(sub=None))),
        ("TOKEN_TOO_LARGE", lambda: RSA.sign(claims(accounts=["a" * 60] * 100))),
        ("TOKEN_MALFORMED", lambda: RSA.sign(claims(exp="soon"))),
        ("TOKEN_MALFORMED", lambda: RSA.sign(claims(exp=10**400))),
        ("TOKEN_MALFORMED", lambda: "no-token"),
        ("TOKEN_MALFORMED", lambda: "a.b.c"),
        ("TOKEN_MALFORMED", lambda: unsigned({"alg": "RS256", "kid": 7}, claims())),
    ],
)
async def test_a_token_that_is_not_right_is_refused_with_its_reason(reason: str, token: Callable[[], str]) -> None:
    at = At()
    made = token()
    assert await at.reason(made) == reason
    assert await at.reason(made) == reason


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters=" ")))
async def test_any_text_is_refused_without_a_defect(text: str) -> None:
    assert (await At().reason(f"x{text}")).startswith("TOKEN_")


@given(st.recursive(st.none() | st.floats() | st.text() | st.integers(), lambda inner: st.lists(inner), max_leaves=4))
async def test_claims_of_any_kind_are_refused_or_ignored_without_a_defect(value: Any) -> None:
    at = At()
    for name in ("exp", "nbf", "iat", "aud", "sub", "accounts", "roles"):
        body = claims() | {name: value}
        head = unsigned({"alg": "EdDSA", "kid": ED.key_id}, body).rpartition(".")[0]
        signature = base64.urlsafe_b64encode(ED.private.sign(head.encode())).decode().rstrip("=")
        with suppress(Unauthenticated):
            await at.one.authenticate(bearer(f"{head}.{signature}"))


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ((), "TOKEN_MISSING"),
        (((AUTHORIZATION, "Basic YTpi"),), "TOKEN_MALFORMED"),
        (((AUTHORIZATION, "Bearer "),), "TOKEN_MALFORMED"),
        (((AUTHORIZATION, "Bearer a b"),), "TOKEN_MALFORMED"),
        (((AUTHORIZATION, "Bearer a"), (AUTHORIZATION, "Bearer b")), "TOKEN_MALFORMED"),
    ],
)
async def test_exactly_one_bearer_token_is_read(pairs: Any, reason: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await At().one.authenticate(Shown(pairs))
    assert refused.value.reason == reason


async def test_two_tokens_are_refused_even_if_each_is_right() -> None:
    right = (AUTHORIZATION, f"Bearer {RSA.sign(claims())}")
    at = At()
    assert (await at.one.authenticate(Shown((right,)))).subject == f"{ISSUER}:ann"
    with pytest.raises(Unauthenticated) as refused:
        await at.one.authenticate(Shown((right, right)))
    assert refused.value.reason == "TOKEN_MALFORMED"


@pytest.mark.parametrize("accounts", [["acme", "\ud800"], "acme \udfff"])
async def test_an_account_that_no_message_can_hold_grants_nothing(accounts: Any) -> None:
    found = await At().one.authenticate(bearer(RSA.sign(claims(accounts=accounts))))
    assert found.accounts == {"acme"}
    assert pair_of(found)


async def test_claims_give_accounts_and_roles_by_the_settings() -> None:
    rules = JwtRules(ISSUER, AUDIENCE, RULES.algorithms, "https://x.example/accounts", "realm_access.roles")
    more: dict[str, Any] = {
        "https://x.example/accounts": "acme beta",
        "realm_access": {"roles": ["admin", "uma_protection", 7]},
    }
    found = await At(rules=rules).one.authenticate(bearer(RSA.sign(claims(**more))))
    assert (set(found.accounts), set(found.roles)) == ({"acme", "beta"}, {Role.ADMIN})


async def test_a_token_is_verified_once_in_sixty_seconds(verified: list[str]) -> None:
    at = At()
    token = RSA.sign(claims())
    for _ in range(3):
        await at.subject(token)
    at.clock.advance(59.9)
    await at.subject(token)
    assert len(verified) == 1
    at.clock.advance(0.2)
    await at.subject(token)
    assert len(verified) == 2


async def test_a_token_is_not_remembered_beyond_its_end(verified: list[str]) -> None:
    at = At()
    token = RSA.sign(claims(exp=int(at.clock.now()) + 11))
    await at.subject(token)
    at.clock.advance(9.0)
    await at.subject(token)
    assert len(verified) == 1
    at.clock.advance(2.1)
    await at.subject(token)
    assert len(verified) == 2, "PyJWT has a clock of its own, by which the token is still valid"


async def test_a_change_of_the_keys_ends_the_memory() -> None:
    at = At()
    token = RSA.sign(claims())
    await at.subject(token)
    at.issuer.document = jwks(EC)
    await at.one.keys.refresh()
    assert await at.reason(token) == "TOKEN_UNKNOWN_KEY"


async def test_the_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch, verified: list[str]) -> None:
    monkeypatch.setattr(jwt_module, "MOST_REMEMBERED", 3)
    at = At()
    tokens = [ED.sign(claims(f"s{number}")) for number in range(5)]
    for token in tokens:
        await at.subject(token)
    assert len(at.one._known) == 3
    await at.subject(tokens[-1])
    assert len(verified) == 5


async def test_a_new_key_is_found_by_the_first_token_that_needs_it() -> None:
    at = At(EC)
    await at.one.keys.refresh()
    at.issuer.document = jwks(EC, NEW)
    at.issuer.go_on.clear()
    waiting = [asyncio.create_task(at.subject(NEW.sign(claims(f"s{number}")))) for number in range(5)]
    await asyncio.sleep(0)
    at.issuer.go_on.set()
    assert await asyncio.gather(*waiting) == [f"{ISSUER}:s{number}" for number in range(5)]
    assert at.issuer.reads == 2


async def test_unknown_keys_ask_the_issuer_at_most_once_in_ten_seconds() -> None:
    at = At(EC)
    for _ in range(50):
        assert await at.reason(NEW.sign(claims())) == "TOKEN_UNKNOWN_KEY"
    assert at.issuer.reads == 1
    at.clock.advance(10.1)
    await asyncio.gather(*(at.reason(NEW.sign(claims())) for _ in range(50)))
    assert at.issuer.reads == 2


async def test_few_calls_wait_for_an_issuer_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_module, "MOST_WAITING", 2)
    monkeypatch.setattr(jwks_module, "WAIT_SECONDS", 0.05)
    at = At(EC)
    await at.one.keys.refresh()
    at.issuer.go_on.clear()
    async with asyncio.timeout(10):
        found = await asyncio.gather(*(at.reason(NEW.sign(claims())) for _ in range(20)))
    assert found == ["TOKEN_UNKNOWN_KEY"] * 20
    at.issuer.go_on.set()


async def test_the_last_good_keys_stay_in_force_for_a_limited_time() -> None:
    at = At()
    token = RSA.sign(claims())
    await at.subject(token)
    at.issuer.away = True
    at.clock.advance(3599)
    with pytest.raises(KeysUnfit):
        await at.one.keys.refresh()
    assert await at.subject(token) == f"{ISSUER}:ann"
    at.clock.advance(2)
    with pytest.raises(KeysUnavailable):
        await at.subject(token)
    at.issuer.away = False
    await at.one.keys.refresh()
    assert await at.subject(token) == f"{ISSUER}:ann"


async def test_without_keys_no_token_is_accepted() -> None:
    at = At()
    at.issuer.away = True
    with pytest.raises(KeysUnavailable):
        await at.subject(RSA.sign(claims()))


def test_a_key_set_leaves_out_secrets_short_keys_and_keys_for_encryption() -> None:
    short = PrivateKey("short", "RS256", rsa.generate_private_key(public_exponent=65537, key_size=1024))
    shared = {"kty": "oct", "kid": "shared", "k": "AAAA"}
    entries = [RSA.jwk(), short.jwk(), shared, EC.jwk() | {"use": "enc"}, {"kty": "EC", "kid": "broken"}]
    assert set(read_keys(json.dumps({"keys": entries}).encode())) == {RSA.key_id}


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [7]}', b'{"keys": []}', b"\xff"])
def test_a_document_that_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(KeysUnfit):
        read_keys(document)


@asynccontextmanager
async def web(answer: bytes) -> AsyncIterator[str]:
    """The address of a web server on loopback with one answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"


def http(status: str, body: bytes = b"", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def test_keys_come_from_an_address() -> None:
    async with web(http("200 OK", jwks(EC).encode())) as url:
        assert set(read_keys(await read_address(url)())) == {EC.key_id}


@pytest.mark.parametrize(
    "answer",
    [
        http("302 Found", b"", "location: https://elsewhere.example/"),
        http("500 Failed"),
        http("200 OK", b" " * (jwks_module._DOCUMENT_BYTES + 1)),
        b"nonsense\r\n\r\n",
    ],
    ids=["redirect", "error", "size", "form"],
)
async def test_other_answers_leave_the_keys_as_they_are_and_show_no_address(answer: bytes) -> None:
    async with web(answer) as url:
        with pytest.raises(KeysUnfit) as refused:
            await read_address(url)()
        assert "127.0.0.1" not in str(refused.value)


async def test_a_principal_is_proved_until_its_token_expires(tmp_path: Path) -> None:
    keys = write(tmp_path / "jwks.json", jwks(EC))
    rules = replace(RULES, leeway_seconds=5.0)
    authenticator = JwtAuthenticator(rules, read_file(keys), KeyTimes(60, 60), ManualClock())
    end = int(time.time()) + 600
    for _ in range(2):
        assert (await authenticator.authenticate(bearer(EC.sign(claims(exp=end))))).expires_at == end + 5.0
