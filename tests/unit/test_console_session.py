"""Sessions of the operators' page, and its guard against foreign forms."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from services.router.web.session import (
    SECONDS,
    ForeignForm,
    Seal,
    Session,
    SessionTooLarge,
    check_form,
    cookie_of,
    set_cookie,
)

NOW = 1_900_000_000.0
KEY = b"a secret of all routers"


def test_a_cookie_opens_with_its_key_until_its_time_is_over() -> None:
    session = Session.begin("ann", "the-token-of-ann-0000")
    sealed = Seal(KEY).seal(session, NOW)
    assert "token" not in sealed
    assert Seal(KEY).open(sealed, NOW + SECONDS - 1) == session, "another router with the same secret"
    assert Seal(KEY).open(sealed, NOW + SECONDS + 1) is None
    assert Seal(KEY).end(sealed) == NOW + SECONDS
    assert Seal(b"another secret").open(sealed, NOW) is None
    assert Seal().open(sealed, NOW) is None
    assert Seal(KEY).open(sealed[:-2] + "xx", NOW) is None
    assert Seal(KEY).open("é", NOW) is None


def test_a_token_that_no_cookie_can_hold_is_refused_at_the_sign_in() -> None:
    with pytest.raises(SessionTooLarge):
        Seal(KEY).seal(Session.begin("ann", "x" * 3000), NOW)


def test_scripts_and_other_sites_cannot_use_the_cookie() -> None:
    cookie = set_cookie("value", secure=True)
    for part in ("HttpOnly", "SameSite=Strict", "Secure", "Path=/console"):
        assert f"; {part}" in cookie
    assert "Secure" not in set_cookie("value", secure=False)
    assert "Max-Age=0" in set_cookie("", secure=True)
    for other in ("other=1", 'other={"a": 1}', "ü=[1, 2]", "@="):
        assert cookie_of(Headers({"cookie": f"{other}; baton_console=abc; {other}"})) == "abc", other
    assert cookie_of(Headers({"cookie": "baton_console"})) == cookie_of(Headers({})) == ""


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:9", "http://[::1", "//["])
def test_a_form_from_elsewhere_is_refused(origin: str | None) -> None:
    session = Session.begin("ann")
    headers = {"host": "127.0.0.1:7790"} | ({"origin": origin} if origin is not None else {})
    with pytest.raises(ForeignForm):
        check_form(session, Headers(headers), session.csrf)


def test_a_form_needs_the_value_of_its_own_session() -> None:
    session, other = Session.begin("ann"), Session.begin("ann")
    headers = Headers({"host": "127.0.0.1:7790", "origin": "http://127.0.0.1:7790"})
    check_form(session, headers, session.csrf)
    check_form(session, Headers({"host": "baton.example", "origin": "https://baton.example"}), session.csrf)
    for given in ("", other.csrf, "é"):
        with pytest.raises(ForeignForm):
            check_form(session, headers, given)
