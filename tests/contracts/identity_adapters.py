"""Each authenticator with credentials that it accepts: for the common suite, and for tests of listeners."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from libs.clock import SystemClock
from libs.identity.jwks import KeyTimes, read_file
from libs.identity.jwt import JwtAuthenticator, JwtRules
from libs.identity.mtls import CertificateNames
from libs.identity.none import NoAuthentication
from libs.identity.port import AUTHORIZATION, Authenticator
from libs.identity.principal import Principal, Role
from libs.identity.settings import ALGORITHMS
from libs.identity.tokens import TokenFile

ISSUER = "https://idp.example"
AUDIENCE = "sandboxes"
ANN, OPS = "ann", "ops"
"""Two holders of credentials: one of the account "acme", and an operator."""
TOKENS = {ANN: "token-of-ann-000000", OPS: "token-of-ops-000000"}
SPIFFE = {ANN: "spiffe://prod.example/ann", OPS: "ops@prod.example"}


@dataclass(frozen=True, slots=True)
class Shown:
    """Credentials of a call."""

    metadata: Iterable[tuple[str, Any]] = ()
    names: Mapping[str, Iterable[bytes]] = field(default_factory=dict)

    def invocation_metadata(self) -> Any:
        return tuple(self.metadata)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:4711"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self.names


def bearer(token: str) -> Shown:
    return Shown(((AUTHORIZATION, f"Bearer {token}"),))


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key of the issuer."""

    key_id: str
    algorithm: str
    private: Any

    def jwk(self) -> dict[str, Any]:
        public = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.key_id, "alg": self.algorithm, "use": "sig"}

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        return jwt.encode(dict(claims), self.private, self.algorithm, {"kid": self.key_id, **header})


RSA = PrivateKey("rsa-1", "RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048))
EC = PrivateKey("ec-1", "ES256", ec.generate_private_key(ec.SECP256R1()))
ED = PrivateKey("ed-1", "EdDSA", ed25519.Ed25519PrivateKey.generate())
KEYS = (RSA, EC, ED)


def claims(subject: str = ANN, **changes: Any) -> dict[str, Any]:
    """`changes`: other claims; None removes one."""
    now = int(time.time())
    made: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600}
    made |= {"accounts": ["acme"]} if subject == ANN else {"roles": ["operator", "reader"]}
    return {name: value for name, value in (made | changes).items() if value is not None}


def jwks(*keys: PrivateKey) -> str:
    return json.dumps({"keys": [key.jwk() for key in keys]})


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def write_tokens(path: Path) -> Path:
    return write(
        path,
        f'[[token]]\nsubject = "ann"\ntoken = "{TOKENS[ANN]}"\naccounts = ["acme"]\n'
        f'[[token]]\nsubject = "ops"\ntoken = "{TOKENS[OPS]}"\nroles = ["operator"]\n',
    )


def write_names(path: Path) -> Path:
    return write(
        path,
        f'[[certificate]]\nname = "{SPIFFE[ANN]}"\naccounts = ["acme"]\n'
        f'[[certificate]]\nname = "{SPIFFE[OPS]}"\nroles = ["operator"]\n',
    )


class Adapter(Protocol):
    authenticator: Authenticator

    def shown(self, who: str) -> Shown:
        """Credentials of a holder."""
        ...

    def unknown(self) -> Shown:
        """Well-formed credentials that nobody holds."""
        ...


class NoneAdapter:
    def __init__(self, folder: Path) -> None:
        self.authenticator: Authenticator = NoAuthentication()

    def shown(self, who: str) -> Shown:
        return Shown()

    def unknown(self) -> Shown:
        return Shown()


class TokensAdapter:
    def __init__(self, folder: Path) -> None:
        self.authenticator: Authenticator = TokenFile(write_tokens(folder / "tokens.toml"), SystemClock())

    def shown(self, who: str) -> Shown:
        return bearer(TOKENS[who])

    def unknown(self) -> Shown:
        return bearer("token-of-nobody-000")


class MtlsAdapter:
    def __init__(self, folder: Path) -> None:
        self.authenticator: Authenticator = CertificateNames(write_names(folder / "names.toml"), SystemClock())

    def shown(self, who: str) -> Shown:
        names = {ANN: {"peer_uri": (SPIFFE[ANN].encode(),)}, OPS: {"peer_email": (SPIFFE[OPS].encode(),)}}
        return Shown(names={"transport_security_type": (b"ssl",), **names[who]})

    def unknown(self) -> Shown:
        return Shown(names={"peer_dns": (b"nobody.example",)})


class JwtAdapter:
    def __init__(self, folder: Path) -> None:
        path = write(folder / "jwks.json", jwks(*KEYS))
        rules = JwtRules(ISSUER, AUDIENCE, ALGORITHMS)
        self.authenticator: Authenticator = JwtAuthenticator(rules, read_file(path), KeyTimes(60, 60), SystemClock())

    def shown(self, who: str) -> Shown:
        return bearer(RSA.sign(claims(who)))

    def unknown(self) -> Shown:
        stranger = PrivateKey("ec-2", "ES256", ec.generate_private_key(ec.SECP256R1()))
        return bearer(stranger.sign(claims()))


ADAPTERS: Mapping[str, Callable[[Path], Adapter]] = {
    "none": NoneAdapter,
    "jwt": JwtAdapter,
    "mtls": MtlsAdapter,
    "tokens": TokensAdapter,
}
ISSUERS = {"jwt": ISSUER, "mtls": "mtls", "tokens": "tokens"}
"""The part of a subject before its last name."""


def expected(adapter: str, who: str) -> Principal:
    name = SPIFFE[who] if adapter == "mtls" else who
    accounts, roles = (("acme",), ()) if who == ANN else ((), (Role.OPERATOR,))
    return Principal(f"{ISSUERS[adapter]}:{name}", frozenset(accounts), frozenset(roles))
