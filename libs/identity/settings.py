"""Settings of authentication, the same for every process with a public listener."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from libs.settings import Settings

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"},
)
"""Algorithms that may be allowed: those with public keys."""


def check_algorithms(value: str) -> str:
    """Raises ValueError."""
    names = read_algorithms(value)
    if not names or not names <= ALGORITHMS:
        raise ValueError(f"names with commas between them, of: {', '.join(sorted(ALGORITHMS))}")
    return value


def read_algorithms(value: str) -> frozenset[str]:
    return frozenset(name.strip() for name in value.split(",") if name.strip())


class IdentitySettings(Settings):
    public_auth: Literal["none", "jwt", "mtls", "tokens"] | None = None
    """How clients of the public listeners (gRPC and HTTP) are authenticated: `none`, `jwt` (tokens of an issuer),
    `mtls` (names of client certificates), `tokens` (a file of tokens). Empty: `none`, and the process refuses to listen
    beyond loopback."""
    public_auth_optional: bool = False
    """With `jwt`, `mtls` or `tokens`: callers without credentials are served as with `none`; wrong credentials are
    refused. For the time in which clients begin to send credentials."""
    public_auth_file: Path | None = None
    """With `mtls` or `tokens`: TOML file with the names or tokens, their accounts and roles. It is read again when it
    changes."""
    jwt_issuer: str = ""
    """With `jwt`: the issuer, exactly as in the claim `iss`."""
    jwt_audience: str = ""
    """With `jwt`: the audience that a token's claim `aud` must contain."""
    jwt_keys: str = ""
    """With `jwt`: the issuer's key set (JWKS): a path, an https address, or an http address on this machine. Refreshed
    in the background, a file every second."""
    jwt_algorithms: Annotated[str, AfterValidator(check_algorithms)] = "RS256,ES256,EdDSA"
    """With `jwt`: allowed algorithms, with commas between them."""
    jwt_accounts_claim: str = "accounts"
    """With `jwt`: claim with the caller's accounts: a list, or a text with spaces between them. A path with dots names
    a nested claim."""
    jwt_roles_claim: str = "roles"
    """With `jwt`: claim with the caller's roles: `viewer`, `operator`, `admin`. Other values are ignored."""
    jwt_public_url: str = ""
    """With `jwt`: address at which clients reach the HTTP listener, such as https://sandboxes.example.com. MCP clients
    get it in the metadata of the protected resource. Empty: taken from each request."""
    jwt_leeway_seconds: Annotated[float, Field(ge=0, le=300)] = 5.0
    """With `jwt`: tolerated difference between the issuer's clock and this machine's."""
    jwt_refresh_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """With `jwt`: interval between two refreshes of the key set from an address."""
    jwt_stale_seconds: Annotated[float, Field(gt=0, le=604_800)] = 86_400.0
    """With `jwt`: how long the last good key set stays in force while refreshes fail."""
