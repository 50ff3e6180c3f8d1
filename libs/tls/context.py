"""SSL contexts whose certificates can change while they are in use."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from libs.tls.files import TlsFiles, context_of

log = logging.getLogger(__name__)


class LiveContext(ssl.SSLContext):
    """A context for asyncio that looks at its files for each new connection. Open connections keep their certificates.

    Replacing everything, not only the certificate, also withdraws a CA that is no longer in its file.
    """

    _files: TlsFiles
    _server: bool
    _current: ssl.SSLContext
    _generation: int
    _said: str

    def __new__(cls, files: TlsFiles, *, server: bool) -> LiveContext:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        self._files, self._server, self._said = files, server, ""
        self._current, self._generation = context_of(files.material, server=server), files.generation
        return self

    def __init__(self, files: TlsFiles, *, server: bool) -> None:
        """Made by `__new__`, as its base."""

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        self._files.refresh()
        if self._files.trouble != self._said:
            self._said = self._files.trouble
            if self._said:
                log.warning("the last good certificate stays: %s", self._said)
        if self._generation != self._files.generation:
            self._current = context_of(self._files.material, server=self._server)
            self._generation = self._files.generation
        return self._current.wrap_bio(*arguments, **named)
