"""Authentication by JSON Web Tokens (RFC 7519) of one issuer, by its public keys.

A verified token is remembered, by its hash, until it expires, for 60 seconds, or until the keys change, whichever is
first. Only algorithms with public keys can be allowed, and a key verifies only algorithms of its own kind: a token that
is signed with a public key as a shared secret is refused like one that is not signed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jwt
from jwt import exceptions

from libs.clock import Clock
from libs.identity import errors
from libs.identity.bearer import bearer_of
from libs.identity.grants import claim, known_roles, too_large
from libs.identity.jwks import Key, Keys, KeyTimes, Read
from libs.identity.port import Credentials
from libs.identity.principal import Principal, subject_of
from libs.tasks import Loop

REMEMBERED_SECONDS = 60.0
MOST_REMEMBERED = 10_000

_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Kind of key by the begin of an algorithm's name."""

_REFUSALS: Mapping[type[Exception], type[errors.Unauthenticated]] = MappingProxyType(
    {
        exceptions.ExpiredSignatureError: errors.TokenExpired,
        exceptions.ImmatureSignatureError: errors.TokenNotYetValid,
        exceptions.InvalidAudienceError: errors.TokenWrongAudience,
        exceptions.InvalidIssuerError: errors.TokenWrongIssuer,
        exceptions.InvalidSignatureError: errors.TokenBadSignature,
        exceptions.InvalidAlgorithmError: errors.TokenAlgorithm,
        exceptions.MissingRequiredClaimError: errors.TokenClaimMissing,
    }
)
_UNREADABLE = (exceptions.PyJWTError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError)
"""Errors by which a hostile token ends its own decoding."""


@dataclass(frozen=True, slots=True)
class JwtRules:
    issuer: str
    audience: str
    algorithms: frozenset[str]
    accounts_claim: str = "accounts"
    roles_claim: str = "roles"
    leeway_seconds: float = 0.0
    """Tolerated difference between the issuer's clock and this machine's."""


class JwtAuthenticator:
    def __init__(self, rules: JwtRules, read: Read, times: KeyTimes, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        """The principal and the monotonic time until which it is remembered, by the token's hash."""
        self.keys = Keys(read, times, clock, self._known.clear)

    def __repr__(self) -> str:
        return f"<JwtAuthenticator {self._rules.issuer} remembered={len(self._known)}>"

    def loop(self) -> Loop:
        return Loop("refresh the keys of tokens", self.keys.run_once)

    async def authenticate(self, credentials: Credentials) -> Principal:
        token = bearer_of(credentials.invocation_metadata())
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        return await self._verified(token, digest)

    async def _verified(self, token: str, digest: bytes) -> Principal:
        algorithm, key_id = self._header(token)
        key = await self.keys.find(key_id)
        if key is None:
            raise errors.TokenUnknownKey()
        if key.kind != _KINDS[algorithm[:2]] or key.algorithm not in ("", algorithm):
            raise errors.TokenAlgorithm()
        # No await from here on: the keys cannot change between this verification and its memory.
        claims = self._claims(token, algorithm, key)
        principal = self._principal(claims)
        self._remember(digest, claims["exp"], principal)
        return principal

    def _header(self, token: str) -> tuple[str, str | None]:
        """Algorithm and key id, both still unverified. Raises TokenMalformed, TokenAlgorithm."""
        try:
            header = jwt.get_unverified_header(token)
        except _UNREADABLE:
            raise errors.TokenMalformed() from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._rules.algorithms:
            raise errors.TokenAlgorithm()
        if key_id is not None and not isinstance(key_id, str):
            raise errors.TokenMalformed()
        return algorithm, key_id

    def _claims(self, token: str, algorithm: str, key: Key) -> dict[str, Any]:
        rules = self._rules
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_seconds,
                options={"require": ["iss", "aud", "sub", "exp"]},
            )
            claims["exp"] = float(claims["exp"])
        except _UNREADABLE as error:
            raise _REFUSALS.get(type(error), errors.TokenMalformed)() from None
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        rules = self._rules
        accounts = claim(claims, rules.accounts_claim)
        if too_large(accounts):
            raise errors.TokenTooLarge()
        roles = known_roles(claim(claims, rules.roles_claim))
        subject, expires_at = subject_of(rules.issuer, claims["sub"]), claims["exp"] + rules.leeway_seconds
        return Principal(subject, frozenset(accounts), roles, expires_at)

    def _remember(self, digest: bytes, expires: float, principal: Principal) -> None:
        now = self._clock.monotonic()
        left = min(expires - self._clock.now(), REMEMBERED_SECONDS, self.keys.fit_until - now)
        self._known.pop(digest, None)
        if left <= 0:
            return
        self._known[digest] = now + left, principal
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
