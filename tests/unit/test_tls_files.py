"""Files with certificates: what is refused at the start, and what stays in force when they change."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from libs.process import measure_tls
from libs.tls import process
from libs.tls.files import TlsUnfit
from libs.tls.process import TlsPaths, load_tls, open_tls
from tests.certificates import Authority, Pair, files, replace
from tests.waiting import eventually


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def paths(pair: Pair, client_ca: Path | None = None, ca: Path | None = None) -> TlsPaths:
    return TlsPaths(pair.certificate, pair.key, client_ca=client_ca, ca=ca)


def another_key(authority: Authority, pair: Pair) -> None:
    kept = pair.certificate.read_bytes()
    authority.issue(pair.certificate.stem)
    replace(pair.certificate, kept)


def encrypted(_: Authority, pair: Pair) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    replace(pair.key, locked)


BREAKS: dict[str, tuple[Callable[[Authority, Pair], object], str]] = {
    "no certificate": (
        lambda _, pair: pair.certificate.unlink(),
        r"tls_certificate: .*own\.pem cannot be read: No such",
    ),
    "no key": (lambda _, pair: pair.key.unlink(), r"tls_key: .*own-key\.pem cannot be read: No such"),
    "no PEM": (
        lambda _, pair: replace(pair.certificate, b"x"),
        r"tls_certificate: .* has no valid certificate: give a PEM",
    ),
    "cut": (
        lambda _, pair: replace(pair.certificate, pair.certificate.read_bytes()[:200]),
        r"tls_certificate: .* has no valid certificate: give a PEM",
    ),
    "no PEM key": (lambda _, pair: replace(pair.key, b"x"), r"tls_key: .* has no valid private key: give a PEM"),
    "another key": (another_key, r"tls_key: .* is not the key of the certificate in .*own\.pem: give the two"),
    "a passphrase": (encrypted, r"tls_key: .* is encrypted: store the key without a passphrase"),
    "expired": (
        lambda authority, _: authority.issue("own", days=-1),
        r"tls_certificate: .* expired at \d{4}-\d\d-\d\d .* renew it",
    ),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_bad_file_is_refused_by_setting_file_and_remedy(how: str, authority: Authority) -> None:
    pair = authority.issue("own")
    break_it, message = BREAKS[how]
    break_it(authority, pair)
    with pytest.raises(TlsUnfit, match=message):
        load_tls(paths(pair))


@pytest.mark.parametrize("how", BREAKS)
def test_a_bad_replacement_leaves_the_last_good_certificate_in_force(how: str, authority: Authority) -> None:
    pair = authority.issue("own")
    found = files(pair)
    kept = found.material
    break_it, message = BREAKS[how]
    break_it(authority, pair)
    assert not found.refresh()
    assert found.material == kept
    assert re.search(message, found.trouble)
    authority.issue("own")
    assert found.refresh()
    assert found.material != kept
    assert found.trouble == ""


def test_a_certificate_that_is_not_valid_yet_is_refused(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("own")
    early = files(pair)
    early._now = lambda: 0.0
    with pytest.raises(TlsUnfit, match=r"tls_certificate: .* is not valid before .* check the clock"):
        early._read()


@pytest.mark.parametrize(("mode", "fit"), [(0o600, True), (0o640, True), (0o604, False), (0o602, False)])
def test_a_key_that_every_user_can_read_or_change_is_refused(mode: int, fit: bool) -> None:
    # The folders of pytest can be entered by their owner only.
    folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    folder.chmod(0o755)
    try:
        pair = Authority(folder).issue("own", key_mode=mode)
        if fit:
            assert files(pair).material.key
        else:
            with pytest.raises(TlsUnfit, match=r"tls_key: .*every user of this machine can read .* chmod 600 /"):
                files(pair)
    finally:
        for one in folder.iterdir():
            one.unlink()
        folder.rmdir()


def test_settings_that_need_each_other_are_named(authority: Authority) -> None:
    pair = authority.issue("own")
    cases = {
        TlsPaths(certificate=pair.certificate): "tls_certificate: .* belong together: set both settings",
        TlsPaths(key=pair.key): "tls_key: .* belong together: set both settings",
        TlsPaths(client_ca=authority.file): "tls_client_ca: .* set tls_certificate and tls_key",
        TlsPaths(public_client_ca=authority.file): "tls_public_client_ca: .* set tls_certificate and tls_key",
        TlsPaths(server_name="one.example"): "tls_server_name: one.example is checked with tls_ca only: set it",
    }
    for given, message in cases.items():
        with pytest.raises(TlsUnfit, match=message):
            load_tls(given)


def test_no_key_is_in_a_text_about_its_files(authority: Authority) -> None:
    pair = authority.issue("own")
    tls = load_tls(paths(pair, ca=authority.file, client_ca=authority.file))
    secret = pair.key.read_text().splitlines()[1]
    for text in (repr(tls), str(tls), repr(tls.public), repr(tls.public and tls.public.material)):
        assert secret not in text and "PRIVATE" not in text


async def test_a_bad_replacement_is_logged_once_and_measured(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "REFRESH_SECONDS", 0.01)
    pair = authority.issue("own")
    reader = InMemoryMetricReader()

    def value(name: str) -> float:
        data = reader.get_metrics_data()
        assert data is not None
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        (point,) = next(one for one in metrics if one.name == name).data.data_points
        return float(point.value)  # type: ignore[union-attr]

    async with open_tls(paths(pair, ca=authority.file)) as tls:
        measure_tls(MeterProvider([reader], shutdown_on_exit=False).get_meter("test"), tls)
        assert 29.9 < value("baton.tls.certificate.days") < 30.1
        assert value("baton.tls.reload.failing") == 0
        replace(pair.certificate, b"x")
        await eventually(lambda: "the last good certificate stays in force: tls_certificate:" in caplog.text)
        assert value("baton.tls.reload.failing") == 1
        await asyncio.sleep(0.1)
        assert caplog.text.count("stays in force") == 1
        with caplog.at_level(logging.INFO):
            authority.issue("own", days=3)
            await eventually(lambda: "the new ones are in force" in caplog.text)
        await eventually(lambda: "the certificate expires in 3.0 days" in caplog.text)
        assert value("baton.tls.reload.failing") == 0
        assert 2.9 < value("baton.tls.certificate.days") < 3.1
    assert caplog.text.count("expires in") == 1


def test_a_process_without_tls_loads_no_library_for_it() -> None:
    check = "import sys; import libs.backend.process; print('cryptography' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout == "False\n"
