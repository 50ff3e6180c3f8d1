"""Certificates that are made for the demo and for containers."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from libs.tls import making
from libs.tls.files import NamedFile, TlsFiles, context_of
from libs.tls.making import CERTIFICATE_DAYS, RENEW_DAYS, Authority, Pair

HOSTS = ("127.0.0.1", "router")


def files(pair: Pair, ca: Path) -> TlsFiles:
    return TlsFiles(NamedFile("certificate", pair.certificate), NamedFile("key", pair.key), NamedFile("ca", ca))


def handshake(server: TlsFiles, client: TlsFiles, name: str) -> None:
    """Both sides verify the other. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = context_of(server.material, server=True).wrap_bio(to_server, to_client, server_side=True)
    other = context_of(client.material, server=False).wrap_bio(to_client, to_server, server_hostname=name)
    done = 0
    for _ in range(4):
        for side in (other, one):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
    assert done >= 2


def test_made_certificates_are_trusted_by_name_and_address_on_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = (files(authority.issue(name, HOSTS), authority.file) for name in ("router", "a"))
    for name in HOSTS:
        handshake(one, other, name)
    assert CERTIFICATE_DAYS - 1 < (one.days_left or 0) <= CERTIFICATE_DAYS


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue("router", HOSTS)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca-key.pem": 0o600, "router.pem": 0o644, "router-key.pem": 0o600}
    shared = authority.issue("container", HOSTS, key_mode=0o444)
    assert shared.key.stat().st_mode & 0o777 == 0o444


def test_a_pair_is_kept_until_it_does_not_fit_any_more(tmp_path: Path) -> None:
    first = Authority(tmp_path).issue("router", HOSTS)
    kept = first.certificate.read_bytes(), first.key.read_bytes()

    def issued(*hosts: str) -> tuple[bytes, bytes]:
        pair = Authority(tmp_path).issue("router", hosts)
        return pair.certificate.read_bytes(), pair.key.read_bytes()

    assert issued(*HOSTS) == kept
    other = issued(*HOSTS, "router-2")
    assert other != kept
    # A new authority: its certificates are not those of the former one.
    (tmp_path / "ca.pem").unlink()
    assert issued(*HOSTS, "router-2") != other


def test_a_certificate_that_expires_soon_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(making, "CERTIFICATE_DAYS", RENEW_DAYS - 1)
        old = authority.issue("router", HOSTS).certificate.read_bytes()
    new = authority.issue("router", HOSTS).certificate.read_bytes()
    ends = [x509.load_pem_x509_certificate(pem).not_valid_after_utc for pem in (old, new)]
    assert ends[0] < ends[1]
