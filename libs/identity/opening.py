"""The authenticator of a process, by its settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from libs.clock import Clock
from libs.identity.none import NoAuthentication
from libs.identity.optional import OptionalAuthentication
from libs.identity.own import WithOwnCalls
from libs.identity.port import Authenticator
from libs.identity.settings import IdentitySettings, read_algorithms
from libs.settings import WrongSetting
from libs.tasks import Loop

log = logging.getLogger(__name__)

NONE = "none"
AUTH_SETTING = "public_auth"

Listener = Literal["public", "control"]
"""Listeners with authentication. The names of their settings begin with it."""

_REACHED = {
    "public": "every client that reaches a public listener may read and change everything",
    "control": "everyone who reaches the control listener has all roles",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """`authenticator`: None if the setting is empty: every caller is anonymous, on loopback only."""

    authenticator: Authenticator | None
    loops: tuple[Loop, ...] = ()
    issuer: str = ""
    """The issuer of tokens, for clients that look for it; "" if there is none."""
    own_metadata: tuple[tuple[str, str], ...] = ()
    """Metadata of the process's own calls of its public listener."""
    public_url: str = ""
    """Address of the HTTP listener for clients; "" if it is not set."""


ANYBODY = Identity(None)


def with_own_calls(identity: Identity) -> Identity:
    """The same identity, for a process that calls its own public listener."""
    if identity.authenticator is None:
        return identity
    own = WithOwnCalls(identity.authenticator)
    return replace(identity, authenticator=own, own_metadata=own.metadata)


async def open_identity(settings: IdentitySettings, clock: Clock, listener: Listener = "public") -> Identity:
    """Raises WrongSetting, UnfitFile. An issuer that is out of reach does not prevent the start: calls are refused
    with KEYS_UNAVAILABLE until it answers.

    `listener`: for the names of settings in errors. `settings` has the values of that listener."""
    identity = await _open_required(settings, clock, listener)
    # Never for operators: without credentials they would have every role.
    if settings.public_auth_optional and listener == "public":
        return _optional(identity, settings.public_auth)
    return identity


def _optional(identity: Identity, kind: str | None) -> Identity:
    """Raises WrongSetting."""
    if identity.authenticator is None or kind == NONE:
        raise WrongSetting(f"public_auth_optional: it is set, but public_auth = {kind or ''} authenticates no caller")
    log.warning(
        "public_auth_optional = true: every client that reaches a public listener without credentials may read and"
        " change everything"
    )
    return replace(identity, authenticator=OptionalAuthentication(identity.authenticator))


async def _open_required(settings: IdentitySettings, clock: Clock, listener: Listener) -> Identity:
    kind = settings.public_auth
    if kind is None:
        return ANYBODY
    if kind == NONE:
        log.warning("%s_auth = none: %s", listener, _REACHED[listener])
        return Identity(NoAuthentication())
    if kind == "jwt":
        return await _open_jwt(settings, clock, listener)
    path = settings.public_auth_file
    if path is None:
        raise WrongSetting(f"{listener}_auth_file: it is not set: {listener}_auth = {kind} needs a TOML file")
    return _open_file(kind, path, clock)


def _open_file(kind: str, path: Path, clock: Clock) -> Identity:
    if kind == "mtls":
        from libs.identity.mtls import CertificateNames

        return Identity(CertificateNames(path, clock))
    from libs.identity.tokens import TokenFile

    return Identity(TokenFile(path, clock))


async def _open_jwt(settings: IdentitySettings, clock: Clock, listener: Listener) -> Identity:
    # Only a process that verifies tokens loads the cryptography.
    from libs.identity import jwks
    from libs.identity.jwt import JwtAuthenticator, JwtRules

    for name in ("jwt_issuer", "jwt_audience", "jwt_keys"):
        if not getattr(settings, name):
            raise WrongSetting(f"{name}: it is not set: {listener}_auth = jwt needs it")
    source = settings.jwt_keys
    if source.startswith("http://") and not jwks.is_local(source):
        raise WrongSetting(f"jwt_keys: {source!r} is not valid: fetch keys over https, or from this machine")
    rules = JwtRules(
        settings.jwt_issuer,
        settings.jwt_audience,
        read_algorithms(settings.jwt_algorithms),
        settings.jwt_accounts_claim,
        settings.jwt_roles_claim,
        settings.jwt_leeway_seconds,
    )
    times = jwks.KeyTimes(jwks.refresh_seconds_of(source, settings.jwt_refresh_seconds), settings.jwt_stale_seconds)
    read = jwks.read_address(source) if jwks.is_address(source) else jwks.read_file(Path(source))
    tokens = JwtAuthenticator(rules, read, times, clock)
    try:
        await tokens.keys.refresh()
    except jwks.KeysUnfit as error:
        if not jwks.is_address(source):
            raise
        log.error("%s; tried again while serving", error)
    return Identity(tokens, (tokens.loop(),), settings.jwt_issuer, public_url=settings.jwt_public_url)
