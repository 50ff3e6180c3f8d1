"""The authentication of operators, by the settings of the control listener."""

from __future__ import annotations

from dataclasses import dataclass

from libs.clock import Clock
from libs.identity.opening import ANYBODY, Identity, open_identity
from libs.rpc.auth import read_token
from libs.settings import WrongSetting
from services.router.settings import RouterSettings

SETTING = "control_auth"
SHARED = "token"
NAMED = frozenset({"jwt", "mtls", "tokens"})
"""Values of the setting with which operators have subjects of their own."""

_JWT = ("jwt_issuer", "jwt_audience", "jwt_keys", "jwt_roles_claim")


@dataclass(frozen=True, slots=True)
class Operators:
    """How operators are authenticated. `token`: the shared token that every call must carry; None without one."""

    identity: Identity
    token: bytes | None = None


ANY_OPERATOR = Operators(ANYBODY)


def kind_of(settings: RouterSettings) -> str:
    """The setting in force; "" if it is empty and there is no shared token."""
    return settings.control_auth or (SHARED if settings.control_token_file else "")


async def open_operators(settings: RouterSettings, clock: Clock) -> Operators:
    """Raises WrongSetting, UnfitFile, TokenUnfit."""
    kind, file = kind_of(settings), settings.control_token_file
    if kind == SHARED:
        if file is None:
            raise WrongSetting("control_token_file: it is not set: control_auth = token needs it")
        return Operators(ANYBODY, read_token(file))
    if file is not None:
        raise WrongSetting(
            f"control_token_file: control_auth = {kind} does not accept it: remove it, or set control_auth = token"
        )
    if bool(settings.control_jwt_issuer) != bool(settings.control_jwt_keys):
        raise WrongSetting("control_jwt_issuer, control_jwt_keys: an issuer and its keys belong together: set both")
    own = {name: getattr(settings, f"control_{name}") or getattr(settings, name) for name in _JWT}
    values = own | {"public_auth": settings.control_auth, "public_auth_file": settings.control_auth_file}
    return Operators(await open_identity(settings.model_copy(update=values), clock, "control"))
