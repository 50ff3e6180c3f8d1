"""Over TLS a page of the listener's own name is served; without it a name proves nothing."""

from __future__ import annotations

import pytest

from libs.http.origins import ForeignOrigin, check_page


def asked(scheme: str, origin: str, host: str = "sandboxes.example", method: str = "POST") -> None:
    headers = [(b"host", host.encode()), (b"origin", origin.encode())]
    check_page({"type": "http", "method": method, "scheme": scheme, "headers": headers})


def test_over_tls_a_page_of_the_listeners_own_name_is_served() -> None:
    asked("https", "https://sandboxes.example")
    asked("https", "https://sandboxes.example:7680", "sandboxes.example:7680")
    for scheme, origin in (
        # By DNS rebinding, evil.example is this listener's address.
        ("http", "http://sandboxes.example"),
        ("http", "https://sandboxes.example"),
        ("https", "http://sandboxes.example"),
        ("https", "https://sandboxes.example.evil"),
        ("https", "null"),
    ):
        with pytest.raises(ForeignOrigin):
            asked(scheme, origin)


def test_a_read_has_no_effect_and_is_not_checked() -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        asked("http", "http://evil.example", method=method)
