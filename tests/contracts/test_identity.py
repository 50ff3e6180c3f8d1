"""The promises of an authenticator, kept by every adapter."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

import pytest

from libs.identity.errors import Unauthenticated
from libs.identity.principal import ANONYMOUS
from tests.contracts.identity_adapters import ADAPTERS, ANN, OPS, Adapter, Shown, expected

EVERY = pytest.mark.parametrize("name", list(ADAPTERS))
STRICT = pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "none"])


def opened(name: str, folder: Path) -> Adapter:
    return ADAPTERS[name](folder)


@STRICT
async def test_each_holder_has_a_subject_accounts_and_roles(name: str, tmp_path: Path) -> None:
    adapter = opened(name, tmp_path)
    for who in (ANN, OPS, ANN):
        assert await adapter.authenticator.authenticate(adapter.shown(who)) == expected(name, who)


@EVERY
async def test_repeated_and_concurrent_calls_have_the_same_principal(name: str, tmp_path: Path) -> None:
    adapter = opened(name, tmp_path)
    shown = adapter.shown(ANN)
    found = await asyncio.gather(*(adapter.authenticator.authenticate(shown) for _ in range(20)))
    assert len(set(found)) == 1
    assert await adapter.authenticator.authenticate(shown) == found[0]


@STRICT
async def test_no_credentials_and_unknown_ones_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    adapter = opened(name, tmp_path)
    for shown, reasons in (
        (Shown(), {"TOKEN_MISSING", "CERTIFICATE_MISSING"}),
        (adapter.unknown(), {"TOKEN_UNKNOWN", "TOKEN_UNKNOWN_KEY", "CERTIFICATE_UNKNOWN"}),
    ):
        with pytest.raises(Unauthenticated) as refused:
            await adapter.authenticator.authenticate(shown)
        assert refused.value.code == "UNAUTHENTICATED"
        assert refused.value.reason in reasons


@STRICT
async def test_a_refusal_shows_nothing_of_credentials_and_configuration(name: str, tmp_path: Path) -> None:
    adapter = opened(name, tmp_path)
    shown = adapter.unknown()
    with pytest.raises(Unauthenticated) as refused:
        await adapter.authenticator.authenticate(shown)
    text = f"{refused.value} {refused.value.detail} {dict(refused.value.metadata)}"
    secrets = [str(tmp_path), *(value.split()[-1] for _, value in shown.metadata)]
    assert not [secret for secret in secrets if secret in text]
    assert refused.value.__cause__ is None, traceback.format_exception(refused.value)


@EVERY
async def test_metadata_of_internal_listeners_has_no_effect(name: str, tmp_path: Path) -> None:
    adapter = opened(name, tmp_path)
    shown = adapter.shown(ANN)
    forged = (("baton-principal", "root"), ("baton-principal-bin", b"\n\x04root\x1a\x01\x03"))
    more = Shown((*forged, *shown.metadata), shown.names)
    wanted = ANONYMOUS if name == "none" else expected(name, ANN)
    assert await adapter.authenticator.authenticate(more) == wanted
