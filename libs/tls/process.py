"""The certificates of one process: for its listeners, and for its calls to the other processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from libs.tls.context import LiveContext
from libs.tls.files import DAY_SECONDS, WARN_DAYS, NamedFile, TlsFiles, TlsUnfit

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
"""Interval between two looks at the files."""


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """The files that the settings name. See `libs.process.ProcessSettings`."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    public_client_ca: Path | None = None
    ca: Path | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS of the calls to the other processes. `server_name`: name that their certificates must have, if it is not the
    host of their address."""

    files: TlsFiles
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Tls:
    """None: without TLS."""

    public: TlsFiles | None = None
    """Files of the listeners for clients: gRPC and HTTP."""
    private: TlsFiles | None = None
    """Files of the listeners for other processes and operators."""
    open: TlsFiles | None = None
    """Files of the listener for metrics, which requires no client certificate."""
    client: ClientTls | None = None
    own_files: TlsFiles | None = None
    """Files for calls to this process itself, which trust its own certificate."""

    def own(self) -> ClientTls | None:
        """TLS of calls to this process's own listeners, whatever host their addresses have."""
        return ClientTls(self.own_files, self.own_files.material.name) if self.own_files is not None else None

    def metrics_context(self) -> LiveContext | None:
        return LiveContext(self.open, server=True) if self.open is not None else None

    @property
    def days_left(self) -> float | None:
        """Days until the certificate expires; None without one."""
        files = self.open or (self.client.files if self.client is not None else None)
        return None if files is None else files.days_left

    @property
    def troubles(self) -> list[str]:
        """Why files that were replaced are not in force."""
        return sorted({one.trouble for one in self._files() if one.trouble})

    @property
    def generation(self) -> int:
        """Number of times that contents were replaced."""
        return sum(one.generation for one in self._files())

    def refresh(self) -> None:
        for one in self._files():
            one.refresh()

    @property
    def has_files(self) -> bool:
        return bool(self._files())

    def _files(self) -> list[TlsFiles]:
        client = self.client.files if self.client is not None else None
        return [one for one in (self.public, self.private, self.open, client, self.own_files) if one is not None]


def load_tls(paths: TlsPaths) -> Tls:
    """Read the files. Raises TlsUnfit."""
    certificate = _named("tls_certificate", paths.certificate)
    key = _named("tls_key", paths.key)
    client_ca = _named("tls_client_ca", paths.client_ca)
    public_client_ca = _named("tls_public_client_ca", paths.public_client_ca)
    ca = _named("tls_ca", paths.ca)
    for authority in (client_ca, public_client_ca):
        if authority is not None and certificate is None:
            raise TlsUnfit(f"{authority}: it needs a listener with a certificate: set tls_certificate and tls_key")
    if paths.server_name and ca is None:
        raise TlsUnfit(f"tls_server_name: {paths.server_name} is checked with tls_ca only: set it")
    client = ClientTls(TlsFiles(certificate, key, ca), paths.server_name) if ca is not None else None
    if certificate is None and key is None:
        return Tls(client=client)
    return Tls(
        TlsFiles(certificate, key, public_client_ca),
        TlsFiles(certificate, key, client_ca),
        TlsFiles(certificate, key, None),
        client,
        TlsFiles(certificate, key, certificate),
    )


@asynccontextmanager
async def open_tls(paths: TlsPaths) -> AsyncIterator[Tls]:
    """The certificates, read again when the files change. Raises TlsUnfit."""
    tls = load_tls(paths)
    watch = asyncio.create_task(_watch(tls))
    try:
        yield tls
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def _watch(tls: Tls) -> None:
    clock = asyncio.get_running_loop().time
    reports = _Reports()
    while True:
        reports.note(tls, clock())
        await asyncio.sleep(REFRESH_SECONDS)
        tls.refresh()


class _Reports:
    """Log entries that were written: each trouble once, an expiry once a day."""

    def __init__(self) -> None:
        self._doubtful: list[str] = []
        self._logged: list[str] = []
        self._generation = 0
        self._warned_at: float | None = None

    def note(self, tls: Tls, now: float) -> None:
        troubles = tls.troubles
        for one in troubles:
            # At the first look the second of two files may not have been replaced yet.
            if one in self._doubtful and one not in self._logged:
                log.warning("the last good certificate stays in force: %s", one)
        self._logged = [one for one in troubles if one in self._doubtful]
        self._doubtful = troubles
        if (generation := tls.generation) != self._generation:
            self._generation = generation
            self._warned_at = None
            log.info("the TLS files were replaced; the new ones are in force")
        left = tls.days_left
        if left is not None and left < WARN_DAYS and (self._warned_at is None or now - self._warned_at > DAY_SECONDS):
            self._warned_at = now
            log.warning("the certificate expires in %.1f days: renew it, the process reads it again by itself", left)


def _named(setting: str, path: Path | None) -> NamedFile | None:
    return None if path is None else NamedFile(setting, path)
